"""Reading prompts: the trie gives what padded rows give, in models it suits, and is left alone in others."""

import logging

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from saerl_lightning.signals.model import truncate
from saerl_lightning.signals.reading import PaddedForward, TreeForward, pooled_parts, suited_forward
from saerl_lightning.signals.sae import sparse_codes

pytestmark = pytest.mark.filterwarnings("ignore:The 'utils' module:DeprecationWarning")  # on import of sae_lens

SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    initializer_range=0.3,  # large, so that attention matters to the result
    pad_token_id=0,
)
SUITED = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "mistral, window no shorter than the prompts": (MistralConfig, MistralForCausalLM, {"sliding_window": 64}),
}
UNSUITED = {
    "windows of 16": (MistralConfig, MistralForCausalLM, {"sliding_window": 16}),
    "differs with tree attention": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {"sliding_window": 64, "attn_logit_softcapping": 0.1, "attn_implementation": "eager"},
    ),
}


def decoder(config_class, model_class, more):
    torch.manual_seed(0)
    return truncate(model_class(config_class(**SIZES | more)).eval(), 1)


def prompts(count: int = 40) -> list[list[int]]:
    """Lists of 1 to 64 tokens that share prefixes of several lengths."""
    rng = np.random.default_rng(0)
    stems = [rng.integers(1, 64, size=n).tolist() for n in (3, 20, 40)]
    lists = [stems[i % 3] + rng.integers(1, 64, size=rng.integers(1, 25)).tolist() for i in range(count - 3)]
    return [*lists, lists[0], stems[1], [5]]  # one twice, one that is a prefix, one of a single token


def alone(model, tokens: list[int]) -> torch.Tensor:
    """A prompt's residual stream, computed with no other prompt beside it."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("name", SUITED)
def test_the_tree_reads_what_every_prompt_alone_reads(name):
    model, lists = decoder(*SUITED[name]), prompts()
    expected = [alone(model, tokens) for tokens in lists]
    forward = suited_forward(model, max_tokens=64)
    assert isinstance(forward, TreeForward)
    for reading in (forward(lists), PaddedForward(model)(lists)):
        for path, rows in zip(reading.paths, expected, strict=True):
            torch.testing.assert_close(reading.hidden[torch.from_numpy(path)], rows, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == "sdpa"  # as it was


def test_half_precision_reads_the_same_up_to_its_rounding():
    model, lists = decoder(*SUITED["llama"]).to(torch.bfloat16), prompts()
    forward = suited_forward(model, max_tokens=64)
    assert isinstance(forward, TreeForward)
    reading = forward(lists)
    for path, tokens in zip(reading.paths, lists, strict=True):
        apart = (reading.hidden[torch.from_numpy(path)] - alone(model, tokens)).float().norm()
        assert apart < 0.03 * alone(model, tokens).float().norm()


@pytest.mark.parametrize("reason", UNSUITED)
def test_models_that_a_tree_does_not_suit_get_padded_rows_and_a_reason(reason, caplog):
    model = decoder(*UNSUITED[reason])
    with caplog.at_level(logging.WARNING):
        assert isinstance(suited_forward(model, max_tokens=64), PaddedForward)
    assert reason in caplog.text and type(model).__name__ in caplog.text


@pytest.mark.parametrize("way", [TreeForward, PaddedForward])
def test_batches_keep_the_budget_and_give_every_prompt_once(way):
    model, lists = decoder(*SUITED["llama"]), prompts()
    lengths: list[int] = []

    def pool(reading):
        lengths.append(len(reading.hidden))
        return np.stack([reading.hidden[path].double().sum(0).numpy() for path in reading.paths])

    rows = np.zeros((len(lists), 32))
    seen: list[int] = []
    for positions, part in pooled_parts(way(model), lists, pool, token_budget=100):
        rows[positions] = part
        seen += positions.tolist()
    assert sorted(seen) == list(range(len(lists))) and max(lengths) <= 100 and len(lengths) > 5
    expected = np.stack([alone(model, tokens).double().sum(0).numpy() for tokens in lists])
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("way", [TreeForward, PaddedForward])
def test_prompts_without_tokens_have_empty_paths(way):
    reading = way(decoder(*SUITED["llama"]))([[], []])
    assert reading.hidden.shape == (0, 32) and [len(path) for path in reading.paths] == [0, 0]


@pytest.mark.parametrize(
    "architecture", ["topk", "topk, scaled", "batchtopk", "jumprelu", "standard", "standard, layer norm"]
)
def test_sparse_codes_equal_the_saes_own(architecture, tmp_path):
    sae = build_sae(architecture, tmp_path)
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = sae.encode(x).numpy()
    codes = sparse_codes(sae, x, tile=16)
    assert codes.shape == (50, 96) and 0 < codes.nnz < 0.7 * 50 * 96 and (codes.data > 0).all()
    np.testing.assert_allclose(codes.toarray(), expected, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        assert not sae.encode(x).is_sparse  # its activation function is its own again


def build_sae(architecture: str, folder):
    """An inference SAE, as training would leave it: through the disk, biases and thresholds away from zero."""
    from sae_lens import SAE
    from sae_lens.saes import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )

    sizes = dict(d_in=16, d_sae=96)
    torch.manual_seed(0)
    sae = {
        "topk": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=7, rescale_acts_by_decoder_norm=False)),
        "topk, scaled": lambda: TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=7, rescale_acts_by_decoder_norm=True)),
        "batchtopk": lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=7)),
        "jumprelu": lambda: JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**sizes)),
        "standard": lambda: StandardTrainingSAE(StandardTrainingSAEConfig(**sizes)),
        "standard, layer norm": lambda: StandardTrainingSAE(
            StandardTrainingSAEConfig(**sizes, normalize_activations="layer_norm")
        ),
    }[architecture]()
    with torch.no_grad():
        for bias in (sae.b_enc, sae.b_dec):
            bias.normal_(std=0.3)
        sae.W_enc.mul_(10)
        sae.W_dec.mul_(torch.rand(96, 1) + 0.5)
        if architecture == "batchtopk":
            sae.topk_threshold.fill_(0.4)
        if architecture == "jumprelu":
            sae.threshold.fill_(0.4)
    sae.save_inference_model(str(folder / "sae"))
    return SAE.load_from_disk(folder / "sae").eval().requires_grad_(False)
