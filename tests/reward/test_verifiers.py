"""Environments of the verifiers package: their numbers beside verifiers' own, their parts, what fails, what is refused."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.prompts import environment as door
from saerl_lightning.prompts.verifiers_env import VerifiersEnv
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.verifiers_reward import VerifiersReward
from tests.reward.examples import SMALL_SUMS, rollouts
from tests.training.conftest import data, fit, module, tiny, trainer, weights  # noqa: F401
from tests.training.test_grpo_module import Record

REPLIES = [["so 1", "1", "9", "is it 1"], ["2", "surely it is 2, is it not? 2", "two!?", ""], ["3!", "3", "", "4"]]


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return VerifiersEnv(SMALL_SUMS).load()


@pytest.fixture(scope="module")
def reward():
    made = VerifiersReward(SMALL_SUMS, workers=1, deadline_s=2.0)
    yield made
    made.close()


def asked(texts: list[list[str]], cut: tuple[int, ...] = ()) -> Rollouts:
    """Groups of completions of as many tokens as words and one more, some of them cut off."""
    flat = [text for group in texts for text in group]
    ids = [[1] * (len(text.split()) + 1) for text in flat]
    blank = [[0.0] * len(each) for each in ids]
    ends = [row in cut for row in range(len(flat))]
    return Rollouts.pack([[0, 0]] * len(texts), ids, blank, ends, flat, len(texts[0]), 0)


def verifiers_own(row: int, text: str, cut: bool):
    """The trace of a reply, as verifiers writes it to a file, scored by verifiers itself."""
    import verifiers.v1 as vf
    from verifiers.v1.configs.agent import WireAgentConfig

    ident = door._imported(SMALL_SUMS)
    task = list(vf.load_taskset(vf.taskset_config_type(ident)(id=ident)))[row]
    written = {
        "task": {"type": "SumTask", "data": task.data.model_dump(mode="json"), "key": task.key, "hash": task.hash},
        "agent": {"config": {}},
        "nodes": [
            {"message": {"role": "system", "content": "Add."}},
            {"message": {"role": "user", "content": f"{row}+1="}, "parent": 0},
            {"message": {"role": "assistant", "content": text}, "parent": 1, "sampled": True},
        ],
        "calls": [
            {
                "node": 2,
                "finish_reason": "length" if cut else "stop",
                "usage": {"prompt_tokens": 2, "completion_tokens": len(text.split()) + 1},
            }
        ],
        "ok": True,
    }
    trace = vf.Trace[vf.WireTaskData, vf.State, WireAgentConfig].model_validate_json(json.dumps(written))
    asyncio.run(task.score(trace))
    return trace


def test_prompts_are_the_tasks(prompts):
    first = prompts[1]
    system, user = {"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}
    assert (first.uid, first.messages, first.answer) == ("small_sums/1", (system, user), "2")
    assert first.labels == {"difficulty": 0.5} and first.columns["answer"] == "2"
    assert [p.uid for p in VerifiersEnv(SMALL_SUMS, {"count": 9}, limit=2).load()] == ["small_sums/0", "small_sums/1"]
    assert len(VerifiersEnv(SMALL_SUMS, {"count": 9}).load()) == 9


def test_grades_and_parts_are_verifiers_own(prompts, reward):
    """Each reward with its weight, keyed ones too; a metric has no say; the parts are what stands before the weights."""
    cut = (1, 9)
    scores = reward(prompts, asked(REPLIES, cut))
    own = [
        verifiers_own(row // 4, text, row in cut)
        for row, text in enumerate(text for group in REPLIES for text in group)
    ]
    assert scores.flatten().tolist() == pytest.approx([trace.reward for trace in own])
    assert scores[0].tolist() == [1.25, 1.0, 0.25, 1.25]  # the second was cut off, and is not brief
    assert scores[1, 1:3].tolist() == [0.5, -0.75]  # right, but asks; wrong and brief, asks and shouts
    parts = reward.drain_parts()
    assert parts.keys() == {"correct", "brief", "shouts", "asks", "fails", "tokens"}
    for name in ("correct", "brief", "shouts", "asks", "fails"):
        assert parts[name] == pytest.approx([trace.rewards[name].score for trace in own])
    assert parts["tokens"] == pytest.approx([trace.metrics["tokens"] for trace in own])
    assert reward.drain_parts() == {}


def test_arguments_reach_the_tasks_and_their_rewards(prompts):
    """Brevity of 3 characters, and another weight of it, as verifiers' configuration has it."""
    arguments = {"task": {"brief": 3, "rewards": {"brief": {"weight": 2.0}}}}
    reward = VerifiersReward(SMALL_SUMS, arguments, workers=1, name="sums")
    assert reward(prompts[:1], rollouts(["so 1", "1", "2"])).tolist() == [[1.0, 3.0, 2.0]]
    assert reward.name == "sums"
    reward.close()


def test_a_completion_that_fails_costs_its_own_grade_alone(prompts, caplog):
    """Four are graded side by side: those that lose their process are tried again alone."""
    failing = ["1", "waits", "hangs", "dies", "raises", "nothing"]
    reward = VerifiersReward(SMALL_SUMS, workers=2, together=4, deadline_s=1.0)
    scores = reward(prompts[:1], rollouts(failing))
    assert scores[0].isnan().tolist() == [False, True, True, True, True, True] and scores[0, 0] == 1.25
    whats = " / ".join(sorted(reward.failures.kinds))
    for said in (
        "ran past its deadline of 1 s",
        "killed its process",
        "raised ValueError",
        "gave NaN as the reward 'fails'",
    ):
        assert said in whats
    assert len([each for each in caplog.records if "counts as not graded" in each.message]) == 1
    assert "small_sums/0" in reward.last_failure
    reward.close()


def test_prompts_of_another_environment_are_refused(prompts, reward):
    other = Prompt.asking("a", "1+1", "2", source="file")
    with pytest.raises(InputError, match=r"^prompt 'a' is not of VerifiersEnv \(its source is 'file'\), and Verifiers"):
        reward.require([other])
    with pytest.raises(
        InputError, match=r"^prompt 'small_sums/0' is of the environment 'small_sums', and VerifiersRew"
    ):
        VerifiersReward("gsm8k")._row(prompts[0])
    odd = Prompt.asking("b", "1+1", grading=json.dumps({"environment": "small_sums", "row": {"answer": []}}))
    with pytest.raises(
        InputError, match=r"small_sums.py' can be made of its data: answer: Input should be a valid string$"
    ):
        reward.require([odd])


# -- the door ----------------------------------------------------------------------------------------------------------

HEAD = """
import verifiers.v1 as vf

class Task(vf.Task[vf.TaskData, vf.State]):
    @vf.reward
    async def right(self, trace) -> float:
        return 1.0
"""
TAIL = """
class Set(vf.Taskset[Task, vf.TasksetConfig]):
    def load(self):
        yield Task(vf.TaskData(prompt="1+1=", {data}), self.config.task)

__all__ = ["Set"{more}]
"""
IMAGE = '[vf.UserMessage(content=[vf.ImageUrlContentPart(image_url={"url": "x"})])]'
REFUSED = {
    "no_reward": (
        HEAD.replace("@vf.reward", "") + TAIL,
        {},
        "has no reward: write a method with @vf.reward in its task",
    ),
    "boxed": (HEAD.replace("trace)", "trace, runtime)") + TAIL, {}, "grades in a sandbox (its reward `right` takes"),
    "prepared": (
        HEAD + "    async def setup(self, trace, runtime):\n        pass\n" + TAIL,
        {},
        "prepares a sandbox (its",
    ),
    "contained": (
        HEAD + "    NEEDS_CONTAINER = True\n" + TAIL,
        {},
        "runs its tasks in containers; only environments of one",
    ),
    "imaged": (HEAD + TAIL, {"data": "image='python'"}, "runs its tasks in containers; only environments of one reply"),
    "changing": (
        HEAD + "    @vf.intercept\n    def no(self, request: vf.Request):\n        pass\n" + TAIL,
        {},
        "changes messages on their way (@vf.intercept)",
    ),
    "tools": (
        HEAD
        + TAIL.replace(
            "\n__all__", "    @classmethod\n    def toolsets(cls, config):\n        return [vf.Toolset]\n__all__"
        ),
        {},
        "gives the policy tools (type); only environments of one reply without tools are taken",
    ),
    "turns": (
        HEAD + "\nclass Turns(vf.Env):\n    async def run(self, task, agents):\n        pass\n" + TAIL,
        {"more": ", 'Turns'"},
        "is played by its own Turns; only environments of one reply without tools are taken",
    ),
    "opened": (
        HEAD + TAIL.replace('prompt="1+1=", ', ""),
        {},
        "has a task without a prompt, which a simulated user opens",
    ),
    "seen": (
        HEAD + TAIL.replace('"1+1="', IMAGE.replace("{", "{{").replace("}", "}}")),
        {},
        "has a prompt with images",
    ),
    "empty_set": (
        HEAD + TAIL.replace("yield Task", "return; yield Task"),
        {},
        "has no tasks; its arguments may select none",
    ),
    "endless": (
        HEAD + TAIL.replace("def load", "INFINITE = True\n    def load"),
        {},
        "makes tasks without end; write how many",
    ),
    "broken": ("1 / 0", {}, "can't be imported: ZeroDivisionError: division by zero"),
    "needy": (
        "import no_such_package",
        {},
        "can't be imported: ModuleNotFoundError: No module named 'no_such_package'",
    ),
    "no_set": ("__all__ = []", {}, "exports no taskset; its module must name one Taskset of verifiers 0.4 in __all__"),
    "older": (
        "def load_environment(): ...",
        {},
        "is of an older verifiers (it has `load_environment`); its module must",
    ),
    "unread": (HEAD + TAIL.replace("yield Task", "1 / 0; yield Task"), {}, "can't read its tasks: ZeroDivisionError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_reply_can_not_play_is_refused_in_a_line(name, tmp_path):
    text, given, said = REFUSED[name]
    file = tmp_path / f"env_{name}.py"
    file.write_text(text.format(**{"data": "", "more": "", **given}) if TAIL[:20] in text else text)
    with pytest.raises(InputError) as refused:
        VerifiersEnv(str(file)).load()
    assert said in str(refused.value) and f"env_{name}.py" in str(refused.value) and "\n" not in str(refused.value)


def test_an_environment_that_can_not_be_imported_is_refused_in_a_line(tmp_path, monkeypatch):
    def refusal(name, arguments=None):
        with pytest.raises(InputError) as refused:
            VerifiersEnv(name, arguments).load()
        return str(refused.value)

    assert refusal("owner/no-such@1").startswith(
        "there is no environment 'owner/no-such@1': no module 'no_such' is installed"
    )
    assert refusal("a.b").startswith("there is no environment 'a.b'")
    assert refusal("none.py").startswith("there is no file 'none.py' with an environment; write its path")
    assert "count: Input should be a valid integer" in refusal(SMALL_SUMS, {"count": "many"})
    assert "sise: Extra inputs are not permitted" in refusal(SMALL_SUMS, {"sise": 3})
    (tmp_path / "json.py").write_text("")
    (tmp_path / "My Env.py").write_text("")
    assert refusal(str(tmp_path / "json.py")).endswith("has the name of another module; rename it, as my_json.py")
    assert refusal(str(tmp_path / "My Env.py")).endswith("give it a name in lower case, as mine.py")
    monkeypatch.setattr(door.importlib.util, "find_spec", lambda name: None)
    assert refusal(SMALL_SUMS).endswith("is not installed; run pip install 'saerl-lightning[verifiers]'")
    monkeypatch.setattr(door.importlib.util, "find_spec", lambda name: None if "." in name else name)
    assert refusal(SMALL_SUMS).endswith("it has no verifiers.v1; run pip install 'verifiers>=0.4'")


# -- a run -------------------------------------------------------------------------------------------------------------

EARNED = """
import verifiers.v1 as vf

class Task(vf.Task[vf.TaskData, vf.State]):
    @vf.reward(weight=2.0)
    async def even(self, trace) -> float:
        return float(len(trace.last_reply) % 2 == 0)

    @vf.metric
    async def letters(self, trace) -> float:
        return float(len(trace.last_reply))

class Earned(vf.Taskset[Task, vf.TasksetConfig]):
    def load(self):
        for i in range(24):
            yield Task(vf.TaskData(prompt=f"{i % 10}+{i // 10}="), self.config.task)

__all__ = ["Earned"]
"""


def test_a_run_trains_on_an_environment_and_logs_its_parts(tiny, tmp_path):  # noqa: F811
    file = tmp_path / "earned.py"
    file.write_text(EARNED)
    record, reward = Record(), VerifiersReward(str(file), workers=1, together=8)
    grpo = module(tiny, rewards=[reward])
    run = fit(grpo, data(train=VerifiersEnv(str(file))), trainer(tmp_path, 2, (record,)))
    step, row = grpo.last_step, record.rows[-1]
    lengths = torch.tensor([float(len(text.strip())) for text in step.rollouts.texts])
    assert step.total.flatten().equal(2.0 * (lengths % 2 == 0))
    assert row["reward/verifiers/parts/even"] == pytest.approx((lengths % 2 == 0).float().mean().item())
    assert row["reward/verifiers/parts/letters"] == pytest.approx(lengths.mean().item())
    assert row["reward/verifiers/mean"] == pytest.approx(2 * row["reward/verifiers/parts/even"])
    assert row["optim/grad_norm"] > 1e-3 and all(value.isfinite().all() for value in weights(run).values())
    assert Path(file).is_file() and not math.isnan(row["loss"])
