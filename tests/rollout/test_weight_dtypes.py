"""An engine receives the policy's weights in the dtype it computes in, whatever dtype the policy is optimised in."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from saerl_lightning.rollout import vllm
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.rollout.vllm import VLLMEngine

# bfloat16 has 7 bits behind the point: between 1 and 2 its numbers are 2^-7 apart, and a tie goes to the even one.
FLOAT32 = [1 + 2**-9, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7]
ROUNDED = [1.0, 1.0, 1 + 2**-6, 1 + 2**-7]


class Receiver:
    """Stands in place of `vllm.LLM`: keeps its settings and the weights that it is sent."""

    last: "Receiver"

    def __init__(self, **settings):
        Receiver.last, self.settings, self.weights = self, settings, {}

    def collective_rpc(self, name, kwargs):
        assert name == "reload_weights"
        self.weights = dict(kwargs["weights_iterator"])

    def reset_prefix_cache(self):
        return True


@pytest.fixture
def receiver(monkeypatch):
    """The class of the stand-in, found where vLLM would be: neither a GPU nor vLLM is needed."""
    module = ModuleType("vllm")
    module.LLM, module.__spec__ = Receiver, ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(vllm, "_set_environment", lambda on_cpu: None)
    return Receiver


CASES = {  # dtype of the engine, of the policy's weights, precision under which it is started, what vLLM must get
    "named": ("bfloat16", torch.float32, None, torch.bfloat16),
    "of the weights": ("auto", torch.float32, None, torch.float32),
    "of bfloat16 weights": ("auto", torch.bfloat16, None, torch.bfloat16),
    "of bf16-mixed": ("auto", torch.float32, torch.bfloat16, torch.bfloat16),
    "named against bf16-mixed": ("float32", torch.float32, torch.bfloat16, torch.float32),
}


@pytest.mark.parametrize(("named", "policy", "autocast", "expected"), CASES.values(), ids=CASES)
def test_vllm_is_started_and_sent_weights_in_one_dtype(load_tiny, receiver, named, policy, autocast, expected):
    model, tokenizer = load_tiny()
    model.to(policy)
    engine = VLLMEngine(dtype=named)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        engine.start(model, tokenizer, 64)
    # After the start autocast may be off, as between two steps: the dtype is the one that vLLM was started with.
    engine.load_weights([*model.state_dict().items(), ("positions", torch.arange(3))], version=1)
    assert receiver.last.settings["dtype"] == str(expected).removeprefix("torch.")
    assert receiver.last.weights.pop("positions").dtype == torch.int64
    assert receiver.last.weights.keys() == model.state_dict().keys()
    assert {tensor.dtype for tensor in receiver.last.weights.values()} == {expected}


def test_vllm_in_bfloat16_gets_float32_weights_rounded_to_the_nearest(load_tiny, receiver):
    engine = VLLMEngine(dtype="bfloat16")
    engine.start(*load_tiny(), 64)
    engine.load_weights([("weight", torch.tensor(FLOAT32))], version=1)
    assert receiver.last.weights["weight"].float().tolist() == ROUNDED


def test_a_processor_without_bfloat16_products_in_onednn_fuses_without_packing(load_tiny, monkeypatch):
    def refused(weight, *_):
        assert weight.dtype != torch.bfloat16, "bf16 path needs the cpu support avx512bw"
        return weight

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refused)
    model, tokenizer = load_tiny()
    engine = HFEngine()
    engine.start(model.to(torch.bfloat16), tokenizer, 64)
    engine.load_weights(model.state_dict().items(), version=1)
    assert engine.fallback is None and engine._weights.head.dtype == torch.bfloat16


def test_the_policys_own_engine_fuses_in_the_policys_dtype(load_tiny):
    """Adapters merged into a bfloat16 policy give float32 tensors; its activations are bfloat16."""
    model, tokenizer = load_tiny()
    model.to(torch.bfloat16)
    weights = {name: tensor.float() for name, tensor in model.state_dict().items()}
    weights["model.norm.weight"][:4] = torch.tensor(FLOAT32)
    engine = HFEngine()
    engine.start(model, tokenizer, 64)
    with torch.no_grad():
        model.model.norm.weight[:4] = torch.tensor(ROUNDED)
    engine.load_weights(weights.items(), version=1)
    assert engine.fallback is None
    fused = engine._weights
    assert fused.norm[:4].float().tolist() == ROUNDED
    tensors = [fused.embedding, fused.norm, fused.head]
    for layer in fused.layers:
        tensors += [layer.qkv, layer.out, layer.gate_up, layer.down, layer.attention_norm, layer.mlp_norm]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
