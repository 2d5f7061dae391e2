"""The mismatch guard against a real vLLM: silent with a right sync, loud with each of the four known faults."""

from __future__ import annotations

import pytest
import torch

from saerl_lightning.errors import RunStopped
from saerl_lightning.policy.load import Policy
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.vllm import VLLMEngine
from tests.training.conftest import data, fit, largest_difference, module, trainer, weights

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]  # vLLM's own imports warn


class HeadNotSent(VLLMEngine):
    """Syncs what `named_parameters()` lists: a tied head goes by the embedding's name alone."""

    def load_weights(self, named_tensors, version):
        super().load_weights([(n, t) for n, t in named_tensors if n != "lm_head.weight"], version)


class PrefixCacheKept(VLLMEngine):
    """Keeps keys and values of the old weights for prompts it has seen."""

    def load_weights(self, named_tensors, version):
        self._llm.reset_prefix_cache = lambda: True
        super().load_weights(named_tensors, version)


class RawLogprobs(VLLMEngine):
    """Starts vLLM with its default `raw_logprobs`, which ignore the temperature."""

    def _launch(self, model, max_model_len):
        import vllm

        original = vllm.LLM
        vllm.LLM = lambda **settings: original(**{**settings, "logprobs_mode": "raw_logprobs"})
        try:
            return super()._launch(model, max_model_len)
        finally:
            vllm.LLM = original


def run(tiny, folder, engine):
    """Three large steps on prompts with one long prefix, which vLLM caches."""
    prompts = data(chat=ChatTemplate(system="Add the two digits. " * 40, max_prompt_tokens=900))
    return fit(
        module(tiny, engine=engine, sampling=Sampling(group_size=8, max_tokens=6, temperature=0.7)),
        prompts,
        trainer(folder, 3),
    )


def test_a_right_sync_is_let_through(tiny, tmp_path):
    trained = run(tiny, tmp_path, VLLMEngine())
    assert trained.global_step == 3
    assert largest_difference(weights(trained), Policy(tiny).load_model().state_dict()) > 1e-3  # it had to sync


@pytest.mark.parametrize(
    "engine",
    [HeadNotSent(), PrefixCacheKept(), RawLogprobs(), VLLMEngine(dtype="bfloat16")],
    ids=["tied head not sent", "prefix cache kept", "temperature", "dtype"],
)
def test_each_fault_stops_the_run(tiny, tmp_path, engine):
    with pytest.raises(RunStopped, match="the sampler is not the policy"):
        run(tiny, tmp_path, engine)
    assert torch.is_grad_enabled()
