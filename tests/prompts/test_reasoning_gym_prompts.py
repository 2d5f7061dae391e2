"""Procedural prompts: the mix, its determinism, and what is refused."""

import json
from collections import Counter

import pytest
from reasoning_gym import create_dataset

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.reasoning_gym import BROKEN_SCORERS, ReasoningGymPrompts

EASY = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}


def test_the_mix_has_the_weights_and_the_tasks_questions():
    prompts = ReasoningGymPrompts({"chain_sum": 2.0, "spell_backward": 1.0, "gcd": 0.5}, 10, 7, EASY).load()
    assert Counter(p.topic for p in prompts) == {"chain_sum": 6, "spell_backward": 3, "gcd": 1}  # 5.7, 2.9, 1.4
    assert [p.topic for p in prompts] != sorted(p.topic for p in prompts)
    assert len({p.uid for p in prompts}) == 10


def test_the_recipe_rebuilds_the_entry():
    prompts = ReasoningGymPrompts({"chain_sum": 1.0, "gcd": 1.0}, 6, 3, EASY).load()
    for prompt in prompts:
        recipe = json.loads(prompt.grading)
        index, config = recipe["index"], recipe["config"]
        assert prompt.uid == f"reasoning_gym/{prompt.topic}/3/{index}"
        assert config == EASY.get(recipe["task"], {})
        entry = create_dataset(recipe["task"], seed=recipe["seed"], size=recipe["size"], **config)[index]
        assert (entry["question"], entry["answer"]) == (prompt.text, prompt.answer)


def test_equal_seeds_give_equal_prompts_and_others_share_none():
    def load(seed):
        return ReasoningGymPrompts({"chain_sum": 1.0, "gcd": 1.0}, 20, seed).load()

    assert load(0) == load(0)
    assert not {p.text for p in load(0)} & {p.text for p in load(1)}  # reasoning-gym's own sets of 0 and 1 overlap


def test_a_numeric_difficulty_becomes_a_label():
    labels = [p.labels for p in ReasoningGymPrompts({"gsm_symbolic": 1.0, "chain_sum": 1.0}, 2).load()]
    assert sorted(labels, key=len) == [{}, {"difficulty": 1.0}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": {"chain_sums": 1.0}, "size": 1}, "no task 'chain_sums'; did you mean .*chain_sum"),
        ({"tasks": {"zzzzzz": 1.0}, "size": 1}, "no task 'zzzzzz'; did you mean ab, acre"),
        ({"tasks": {"composite": 1.0}, "size": 1}, "no task 'composite'"),
        ({"tasks": {}, "size": 1}, "tasks is empty"),
        ({"tasks": {"gcd": 0.0}, "size": 1}, "with 0.0; write a number above 0"),
        ({"tasks": {"gcd": float("nan")}, "size": 1}, "with nan"),
        ({"tasks": {"gcd": 1.0}, "size": 0}, "size is 0"),
        ({"tasks": {"gcd": 1.0}, "size": 1, "configs": {"lcm": {}}}, "configs names lcm"),
        ({"tasks": {"gcd": 1.0}, "size": 1, "configs": {"gcd": {"terms": 2}}}, "configs.gcd .* refuses: .*terms"),
        ({"tasks": {"gcd": 1.0}, "size": 1, "configs": {"gcd": {"min_numbers": -1}}}, "configs.gcd .* refuses"),
        ({"tasks": {"coin_flip": 1.0}, "size": 1}, "scorer of task 'coin_flip' gives full marks to any prefix"),
        ({"tasks": {"graph_color": 1.0}, "size": 1}, "'graph_color' gives no gold answer"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        ReasoningGymPrompts(**arguments).load()


@pytest.mark.parametrize(("task", "wrong"), [("coin_flip", "0"), ("game_of_life_halting", "junk")])
def test_a_scorer_on_the_list_of_broken_ones_accepts_a_wrong_answer(task, wrong):
    """When this fails, reasoning-gym has mended the scorer, and the task may come off the list."""
    dataset = create_dataset(task, size=20, seed=0)
    assert any(dataset.score_answer(wrong, entry) == 1.0 for entry in dataset if entry["answer"] != wrong)
    assert task in BROKEN_SCORERS


def test_tasks_that_follow_the_hash_seed_need_it_fixed(monkeypatch):
    source = ReasoningGymPrompts({"ransom_note": 1.0}, 2)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(InputError, match=r"ransom_note change with Python's hash seed.*PYTHONHASHSEED=0"):
        source.load()
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(source.load()) == 2


def test_parts_share_no_question_however_small_the_task():
    """2 one-digit numbers make 162 sums; sets of two seeds alone ask many of them both."""

    def texts(seed, **more):
        return [each.text for each in ReasoningGymPrompts({"chain_sum": 1.0}, 60, seed, EASY, **more).load()]

    low, high = texts(1, part=(0.0, 0.5)), texts(2, part=(0.5, 1.0), distinct=True)
    assert set(texts(1)) & set(texts(2)) and not set(low) & set(high)
    assert len(low) == 60 > len(set(low)) and len(set(high)) == 60
    with pytest.raises(InputError, match=r"held only .* that part and distinct let through, and 60 are wanted"):
        texts(1, part=(0.0, 0.01), distinct=True)
    with pytest.raises(InputError, match=r"part is \[0.5, 0.5\]; write two shares"):
        texts(1, part=(0.5, 0.5))
