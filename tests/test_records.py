"""The nouns that cross folders."""

import pytest
import torch
from jaxtyping import TypeCheckError

from saerl_lightning.errors import InputError
from saerl_lightning.records import Outcomes, Prompt, Rollouts, Sampling

GAP = [[True, False, True], [True]]


def test_packing_by_hand():
    packed = Rollouts.pack(
        prompt_ids=[[5, 6], [7]],
        completions=[[1], [2, 3], [4, 4, 4], []],
        logprobs=[[-0.5], [-1.0, -2.0], [-3.0, -4.0, -5.0], []],
        truncated=[False, True, True, False],
        texts=["a", "b", "c", ""],
        group_size=2,
        version=3,
        pad_id=9,
    )
    assert packed.tokens.tolist() == [[5, 6, 1, 9], [5, 6, 2, 3], [7, 4, 4, 4], [7, 9, 9, 9]]
    assert packed.mask.int().tolist() == [[0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert packed.logprobs.tolist() == [[0, 0, -0.5, 0], [0, 0, -1, -2], [0, -3, -4, -5], [0, 0, 0, 0]]
    assert packed.completion_lengths.tolist() == [1, 2, 3, 0]
    assert packed.lengths.tolist()[:3] == [3, 4, 4]
    assert packed.truncated.tolist() == [False, True, True, False]
    assert packed.weight_version.tolist() == [3, 3, 3, 3]


def test_packing_a_gap_by_hand():
    packed = Rollouts.pack([[5]], [[1, 2, 3], [4]], [[-1.0, -9.0, -2.0], [-3.0]], [False] * 2, ["a", "b"], 2, 0, 9, GAP)
    assert packed.mask.int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]
    assert packed.own.int().tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]
    assert packed.logprobs.tolist() == [[0, -1, 0, -2], [0, -3, 0, 0]]
    assert (packed.completion_lengths.tolist(), packed.lengths.tolist()) == ([2, 1], [4, 2])


def test_the_text_of_a_chat_is_what_the_user_wrote():
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"})
    assert Prompt("a", chat, "2").text == "1+1?"
    assert Prompt("a", (*chat, {"role": "user", "content": "And 2+2?"}), "4").text == "1+1?\n\nAnd 2+2?"


@pytest.mark.parametrize(
    ("name", "value"),
    [("group_size", 0), ("temperature", -0.1), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("max_tokens", 0)],
)
def test_sampling_refuses_what_means_nothing(name, value):
    with pytest.raises(InputError, match=rf"Sampling\.{name} is {value}"):
        Sampling(**{name: value})


def test_sampling_knows_whether_it_has_full_support():
    assert Sampling().full_support
    assert not any(s.full_support for s in (Sampling(top_p=0.9), Sampling(top_k=5), Sampling(temperature=0)))


def test_shapes_are_checked_here():
    with pytest.raises(TypeCheckError, match="Outcomes"):
        Outcomes(["a"], torch.zeros(2, 4), *[torch.zeros(3)] * 4)
