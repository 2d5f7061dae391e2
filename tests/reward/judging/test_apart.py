"""A judge that never answers is given up at once: by Ctrl-C, by a step that ends, and by closing the reward."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from saerl_lightning.records import PromptBatch, Sampling
from saerl_lightning.reward.judge_reward import JudgeReward
from saerl_lightning.training.grading import sample_and_grade
from saerl_lightning.training.metrics import Phases
from tests.reward.examples import SUM_PROMPTS, rollouts
from tests.reward.judging.chat_server import JudgeServer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server():
    with JudgeServer(lambda handler, body: time.sleep(20)) as running:
        yield running


HANGING = """
import sys
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.judge_reward import JudgeReward
rollouts = Rollouts.pack([[0]], [[1]], [[0.0]], [False], ["a"], 1, 0)
print("asking", flush=True)
JudgeReward(sys.argv[1], "m", cache=None)([Prompt.asking("p", "?")], rollouts)
"""


def test_ctrl_c_ends_the_wait_at_once(server):
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "asking\n"
    while not server.asked:
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - began < 15 and stderr.rstrip().endswith("KeyboardInterrupt"), stderr


class Interrupted:
    """An engine whose second part never comes, because the user gives the step up."""

    def __init__(self, server: JudgeServer) -> None:
        self.server = server

    def stream(self, prompt_ids, sampling):
        yield rollouts(["a", "b"])
        while not self.server.asked:
            time.sleep(0.02)
        raise KeyboardInterrupt


def test_a_step_that_is_given_up_does_not_wait_for_grades_beside_it(server):
    batch = PromptBatch(SUM_PROMPTS[:2], [[1], [1]], [0, 1])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sample_and_grade(
            Interrupted(server), [JudgeReward(server.url, "m", cache=None)], batch, Sampling(group_size=2), Phases()
        )
    assert time.monotonic() - began < 15


def test_closing_ends_what_another_thread_waits_for(server):
    reward, ended = JudgeReward(server.url, "m", cache=None), []

    def grade() -> None:
        try:
            reward(SUM_PROMPTS[:1], rollouts(["a"]))
        except CancelledError:
            ended.append(True)

    waiting = threading.Thread(target=grade)
    waiting.start()
    while not server.asked:
        time.sleep(0.02)
    reward.close()
    waiting.join(5)
    assert ended == [True]
