"""The mismatch guard against a real vLLM: silent with a right sync, loud with each of the four known faults."""

from __future__ import annotations

import pytest
import torch

from saerl_lightning.errors import RunStopped
from saerl_lightning.policy.load import LoRA, Policy
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
    [
        HeadNotSent(),
        pytest.param(PrefixCacheKept(), marks=pytest.mark.slow),
        pytest.param(RawLogprobs(), marks=pytest.mark.slow),
        pytest.param(VLLMEngine(dtype="bfloat16"), marks=pytest.mark.slow),
    ],
    ids=["tied head not sent", "prefix cache kept", "temperature", "dtype"],
)
def test_each_fault_stops_the_run(tiny, tmp_path, engine):
    with pytest.raises(RunStopped, match="the sampler is not the policy"):
        run(tiny, tmp_path, engine)
    assert torch.is_grad_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [True, False], ids=["adapters alone", "merged"])
def test_a_lora_policy_is_followed(tiny, tmp_path, adapters):
    """The guard compares vLLM with the policy at every step; after three large ones a stale adapter would be far off."""
    torch.manual_seed(0)
    engine = VLLMEngine(adapters=adapters)
    sent = []
    engine.load_weights, plain = lambda *args: (sent.append("weights"), plain(*args)), engine.load_weights
    engine.load_adapters, alone = lambda *args: (sent.append("adapters"), alone(*args)), engine.load_adapters
    prompts = data(chat=ChatTemplate(system="Add the two digits. " * 40, max_prompt_tokens=900))
    policy = Policy(tiny, lora=LoRA(rank=4))
    trained = fit(module(tiny, policy=policy, engine=engine), prompts, trainer(tmp_path, 3))
    moved = [p for n, p in trained.model.named_parameters() if "lora_B" in n]
    assert max(p.abs().max().item() for p in moved) > 1e-3
    assert sent == ["adapters" if adapters else "weights"] * 4
    assert 3e-5 > trained.trainer.callback_metrics["sampler/mismatch_mean"] > 0


class Counting:
    """Counts the rows that lose their place in vLLM's cache; to be mixed into an engine."""

    preempted = 0

    def start(self, *args):
        super().start(*args)
        scheduler = self._llm.llm_engine.engine_core.engine_core.scheduler
        preempt = scheduler._preempt_request

        def counted(*args, **options):
            self.preempted += 1
            return preempt(*args, **options)

        scheduler._preempt_request = counted


class Small(Counting, VLLMEngine):
    """A cache of a few rows."""


class SmallAndStale(Counting, HeadNotSent):
    """The same, with an old output head."""


def crowded(tiny, folder, engine, steps=2):
    """Sixteen rows that outgrow a block of the cache, which has five."""
    sampling = Sampling(group_size=8, max_tokens=140, seed=3)
    return fit(module(tiny, engine=engine, sampling=sampling), data(batch_size=2), trainer(folder, steps))


@pytest.mark.slow
def test_the_guard_is_right_where_rows_lose_their_cache(tiny, tmp_path):
    """Two steps end on the weights of a run whose cache holds all rows; a stale head is still seen."""
    small = Small(kv_cache_gb=0.00032)
    ended = crowded(tiny, tmp_path / "small", small)
    assert small.preempted > 0
    assert ended.trainer.callback_metrics["sampler/mismatch_mean"] < 3e-5
    roomy = crowded(tiny, tmp_path / "roomy", VLLMEngine())
    assert largest_difference(weights(ended), weights(roomy)) < 1e-5
    stale = SmallAndStale(kv_cache_gb=0.00032)
    with pytest.raises(RunStopped, match="the sampler is not the policy"):
        crowded(tiny, tmp_path / "stale", stale)
    assert stale.preempted > 0


@pytest.mark.slow
def test_a_second_fit_in_one_process_trains_on_with_vllm(tiny, tmp_path):
    """The same module and engine train on where the first run ended; another module in the same process starts anew."""
    grpo = module(tiny, engine=VLLMEngine())
    fit(grpo, data(), trainer(tmp_path / "first", 2))
    first = weights(grpo)
    fit(grpo, data(), trainer(tmp_path / "second", 2))
    assert grpo.trainer.callback_metrics["sampler/mismatch_mean"] < 3e-5
    assert largest_difference(weights(grpo), first) > 1e-3
    anew = fit(module(tiny, engine=VLLMEngine()), data(), trainer(tmp_path / "third", 2))
    assert largest_difference(weights(anew), first) < 1e-5
