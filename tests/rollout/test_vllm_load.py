"""vLLM with more work than a step of its scheduler or its cache holds, against the policy's own forward."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.policy.logprobs import mismatch, score
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.vllm import FULL_TAILS, VLLMEngine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]  # vLLM's own imports warn
CONTEXT = 2048  # the tiny policy's


def made_up(count: int, tokens: int) -> list[list[int]]:
    """Prompts without a common beginning, so that none is found in the prefix cache."""
    drawn = torch.randint(3, 250, (count, tokens), generator=torch.Generator().manual_seed(count))
    return drawn.tolist()


def started(policy, **options) -> VLLMEngine:
    engine = VLLMEngine(**options)
    engine.start(*policy, CONTEXT)
    engine.load_weights(policy[0].state_dict().items(), version=0)
    return engine


def preemptions(engine) -> list[str]:
    """Fills with a request's name each time vLLM takes one's cache away."""
    scheduler, taken = engine._llm.llm_engine.engine_core.engine_core.scheduler, []
    preempt = scheduler._preempt_request
    scheduler._preempt_request = lambda request, *rest, **more: (
        taken.append(request.request_id),
        preempt(request, *rest, **more),
    )
    return taken


def worst(model, rollouts) -> float:
    """The largest difference to the policy's own log-probabilities, scored a few rows at a time."""
    parts = zip(rollouts.tokens.split(32), rollouts.mask.split(32), strict=True)
    with torch.no_grad():
        policy = torch.cat([score(model.eval(), tokens, mask)[0] for tokens, mask in parts])
    return float(mismatch(policy, rollouts.logprobs, rollouts.mask)[1])


@pytest.fixture(scope="module")
def roomy(load_tiny):
    policy = load_tiny()
    with started(policy, kv_cache_gb=0.25) as engine:
        yield engine, policy[0]


@pytest.mark.parametrize(
    ("prompts", "group", "tokens"), [(64, 1, 70), (32, 8, 140), (8, 32, 300)], ids=["64", "256", "groups of 32"]
)
def test_more_prompt_tokens_than_a_step_takes_are_sampled_all_the_same(roomy, prompts, group, tokens):
    engine, model = roomy
    asked, sampling = made_up(prompts, tokens), Sampling(group_size=group, max_tokens=6, seed=3)
    rollouts = engine.generate(asked, sampling)
    assert len(set(map(tuple, rollouts.tokens.tolist()))) == prompts * group
    assert worst(model, rollouts) < 1e-4
    few = engine.generate(asked[:3], sampling)
    width = few.tokens.shape[1]
    assert few.tokens.equal(rollouts.tokens[: 3 * group, :width])  # a prompt's draws are its own


def test_prompts_that_fill_the_context_are_sampled_to_its_end(roomy):
    engine, model = roomy
    rollouts = engine.generate(made_up(4, CONTEXT - 9), Sampling(group_size=2, max_tokens=9, seed=1))
    assert rollouts.tokens.shape[1] == CONTEXT
    assert rollouts.truncated.any()
    assert worst(model, rollouts) < 1e-4


@pytest.mark.slow
def test_rows_that_lose_their_cache_go_on_as_they_would_have(roomy, load_tiny):
    """The cache holds two rows of the longest and a few short ones, not 24 at once."""
    prompts, sampling = made_up(8, 620), Sampling(group_size=3, max_tokens=40, seed=5)
    whole = roomy[0].generate(prompts, sampling)
    with started(load_tiny(), kv_cache_gb=0.011) as engine:
        taken = preemptions(engine)
        rollouts = engine.generate(prompts, sampling)
        assert len(taken) > 0
        assert rollouts.tokens.equal(whole.tokens)
        assert rollouts.truncated.equal(whole.truncated)
        torch.testing.assert_close(rollouts.logprobs, whole.logprobs, atol=1e-4, rtol=0)
        assert worst(roomy[1], rollouts) < 1e-4


@pytest.mark.slow
def test_a_step_takes_a_token_of_every_row(load_tiny):
    with started(load_tiny(), kv_cache_gb=0.05, max_num_seqs=4200) as engine:
        assert len(engine.generate(made_up(2, 5), Sampling(group_size=2, max_tokens=2)).texts) == 4


def test_what_a_gpu_gets_is_known_to_vllm():
    """No GPU runs here: the name of the setting at least is right."""
    from vllm.engine.arg_utils import EngineArgs

    assert set(FULL_TAILS) <= {field.name for field in dataclasses.fields(EngineArgs)}


@pytest.mark.slow
def test_a_cache_below_one_row_is_refused(load_tiny):
    with pytest.raises(InputError, match=r"can't hold one row of 2048 tokens; raise engine.kv_cache_gb"):
        started(load_tiny(), kv_cache_gb=0.001)
