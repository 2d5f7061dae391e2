import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_lightning.records import Sampling
from saerl_lightning.rollout.decoding import prompt_seeds, sample_tokens, uniforms

LOGITS = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()  # cumulative mass .1 .3 .6 1.


def drawn(uniform: list[float], **options) -> tuple[list[int], list[float]]:
    tokens, logprobs = sample_tokens(
        LOGITS.repeat(len(uniform), 1), torch.tensor(uniform), **{"temperature": 1.0, **options}
    )
    return tokens.tolist(), logprobs.exp().tolist()


def close(a, b):
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b))


def test_a_number_picks_the_token_whose_mass_it_falls_into():
    tokens, mass = drawn([0.0, 0.05, 0.15, 0.29, 0.31, 0.59, 0.61, 0.999999])
    assert tokens == [0, 0, 1, 1, 2, 2, 3, 3]
    close(mass, [0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4])


def test_temperature_one_half_squares_the_odds():
    tokens, mass = drawn([0.02, 0.99], temperature=0.5)  # .01 .04 .09 .16 over .3
    assert tokens == [0, 3]
    close(mass, [0.01 / 0.3, 0.16 / 0.3])


def test_top_k_and_top_p_keep_the_likeliest_and_renormalise():
    tokens, mass = drawn([0.0, 0.99], top_k=2)  # .3 .4 over .7
    assert tokens == [2, 3]
    close(mass, [3 / 7, 4 / 7])
    tokens, mass = drawn([0.0, 0.99], top_p=0.65)  # .4 is not enough, .4 + .3 is
    assert tokens == [2, 3]
    tokens, mass = drawn([0.0, 0.99], top_p=0.01)  # the likeliest token is always kept
    assert tokens == [3, 3]
    close(mass, [1.0, 1.0])


def test_greedy_takes_the_likeliest_and_reports_temperature_one():
    tokens, mass = drawn([0.0, 0.5], temperature=0.0)
    assert tokens == [3, 3]
    close(mass, [0.4, 0.4])


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from([0.0, 2**-24, 1 - 2**-24]))
def test_a_token_without_mass_is_never_drawn(seed, top_k, uniform):
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * 8
    tokens, logprobs = sample_tokens(logits, torch.full((3,), uniform), 1.0, top_k=top_k)
    assert logprobs.isfinite().all()
    assert (logits.gather(1, tokens[:, None]) >= logits.topk(top_k).values[:, -1:]).all()


def test_the_seed_of_a_prompt_depends_on_its_position_alone():
    seven, eight = Sampling(seed=7), Sampling(seed=8)
    assert prompt_seeds(seven, 5)[:3] == prompt_seeds(seven, 3)
    assert len(set(prompt_seeds(seven, 500) + prompt_seeds(eight, 500))) == 1000
    assert prompt_seeds(eight.placed([3, 1], seed=7), 2) == [prompt_seeds(seven, 4)[p] for p in (3, 1)]
    with pytest.raises(AssertionError, match="3 prompts are sampled at 2 places"):
        prompt_seeds(seven.placed([3, 1], seed=7), 3)
    assert uniforms(1, 4, 2).equal(uniforms(1, 4, 2))


def test_a_long_tail_is_drawn_and_reported_as_it_is():
    """152,000 tokens, .05 % of the mass on all but the first thousand: the numbers at both ends of a token's share draw it.

    Ends that are right to a hundredth of every share, and shares reported to a millionth, keep the total variation between
    what is drawn and what is reported below 1e-5.
    """
    vocabulary, random = 152_000, np.random.default_rng(0)
    logits = random.normal(0, 0.5, vocabulary)
    logits[:1000] += 12.5
    logits = random.permutation(logits).astype(np.float32)
    share = (
        torch.tensor(logits - logits.max()).exp().numpy().astype(np.longdouble)
    )  # each share's rounding is the float's
    share /= share.sum()
    rare = share < 1e-7
    assert 3e-4 < share[rare].sum() < 8e-4
    asked = np.concatenate([random.choice(np.flatnonzero(rare), 40), random.choice(np.flatnonzero(~rare), 20)])
    ends, inset = share.cumsum()[asked], share[asked] / 100
    for numbers in (ends - share[asked] + inset, ends - inset):
        uniform = torch.tensor(numbers.astype(np.float64))
        tokens, logprobs = sample_tokens(torch.tensor(logits).expand(len(asked), -1), uniform, 1.0)
        assert tokens.tolist() == asked.tolist()
        np.testing.assert_allclose(logprobs.double().exp().numpy(), share[asked].astype(np.float64), rtol=5e-6)


def test_random_numbers_are_finer_than_float32_steps():
    """Nearly no number is a multiple of 2^-24, the step between float32's; all are below 1."""
    drawn = uniforms(0, 1000, 4)
    assert (drawn * 2**24 % 1 != 0).float().mean() > 0.99
    assert drawn.max() < 1
