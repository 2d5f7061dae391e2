"""`show`: a prompt as the model sees it, and an answer as the rewards see it, printed before anything is trained."""

import json

import pytest

from saerl_lightning import cli
from saerl_lightning.verbs.show import roles


@pytest.fixture
def shown(workplace, capsys):
    """What `show` prints; the workplace's own settings, then the flags."""

    def show(*flags: str) -> str:
        cli.run([*workplace.command("show"), "--model.rewards=[MathReward]", *flags])
        return capsys.readouterr().out

    return show


def test_a_prompt_and_its_right_answer_are_printed_as_model_and_rewards_see_them(workplace, shown):
    first = json.loads(workplace.train.read_text().splitlines()[0])
    printed = shown("--data.chat.system=Be brief.", "--data.chat.prefill=So ")
    for line in (
        "<|im_start|>system",
        "Be brief.<|im_end|>",
        f"{first['prompt']}<|im_end|>",
        "<|im_start|>assistant",
        f"So \\boxed{{{first['answer']}}}",
        "reward math: 1",
    ):
        assert line in printed.splitlines(), f"{line!r} not in {printed}"


def test_a_given_answer_is_graded_and_tokens_are_listed_with_their_roles(workplace, shown):
    second = json.loads(workplace.train.read_text().splitlines()[1])
    printed = shown("--completion=It is -1.", f"--prompt={second.get('id', 'train/1')}", "--tokens=true")
    assert "It is -1." in printed.splitlines() and "reward math: 0" in printed.splitlines()
    rows = [line.split() for line in printed.splitlines() if line[:1].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(len(rows)))
    assert f", {len(rows)} tokens" in printed.splitlines()[0]
    assert {row[-1] for row in rows} == {"template", "user"}
    assert rows[0][-2:] == ["'<|im_start|>'", "template"]


def test_the_policy_samples_an_answer_if_asked(shown):
    printed = shown("--sample=true", "--model.sampling.max_tokens=3")
    assert "answer (sampled, 3 tokens, cut at max_tokens), as the rewards see it" in printed


def test_what_can_not_be_shown_is_refused(workplace, door):
    for flags, says in (
        (["--prompt=p-77"], "--prompt 'p-77' is the id of no training prompt"),
        (["--sample=true", "--completion=4"], "are two answers"),
    ):
        ended = door([*workplace.command("show"), *flags])
        assert ended.code == 2 and says in ended.error


def test_pieces_of_a_chat_have_the_roles_of_their_messages():
    messages = [{"role": "system", "content": "be "}, {"role": "user", "content": "hi"}]
    assert roles("<s>be<u>hi<a>", messages) == [
        ("template", "<s>"), ("system", "be"), ("template", "<u>"), ("user", "hi"), ("template", "<a>"),
    ]  # fmt: skip
    assert roles("<s>HI", messages) == [("template", "<s>HI")]
