"""Groups that teach nothing give way to the plan's next prompts: by hand, over ranks, and in a training run."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback

from saerl_lightning.data.serving import PlanSampler
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt, PromptBatch, Rollouts
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.metrics import refill_metrics
from saerl_lightning.training.rounds.dynamic_sampling import DynamicSampling, trained_groups
from saerl_lightning.training.rounds.rounds import StepSource
from tests.training.conftest import ParityReward, data, fit, largest_difference, module, trainer, weights

SCRIPT = Path(__file__).with_name("dynamic_sampling_ranks.py")
NAN = float("nan")


def batch_of(rows: list[int]) -> PromptBatch:
    return PromptBatch([Prompt(f"p{row}", (), "") for row in rows], [[row] for row in rows], rows)


def graded(batch: PromptBatch, rewards: dict[int, list[float]], number: int = 0) -> GradedGroups:
    """Groups of two completions: row 7's are the tokens 70 and 71."""
    completions = [[10 * row + g] * (row % 3 + 1) for row in batch.rows for g in range(2)]
    zeros = [[0.0] * len(completion) for completion in completions]
    texts = [str(completion[0]) for completion in completions]
    rollouts = Rollouts.pack(batch.ids, completions, zeros, [False] * len(texts), texts, 2, version=0)
    total = torch.tensor([rewards[row] for row in batch.rows])
    return GradedGroups(batch, rollouts, {"reward": total}, total, [number] * len(total))


def rewards_of(script: str) -> dict[int, list[float]]:
    """One letter a plan position: v varies, 0 and 1 are all wrong and all right, x is where every grader failed."""
    groups = {"v": [0.0, 1.0], "0": [0.0, 0.0], "1": [1.0, 1.0], "x": [NAN, NAN], "h": [NAN, 1.0]}
    return {row: groups[letter] for row, letter in enumerate(script)}


Step = tuple[GradedGroups, GradedGroups]  # generated, trained


def run_rank(script: str, sampler: PlanSampler, max_rounds: int, gather) -> tuple[list[Step], list[tuple[int, ...]]]:
    """Fills every step of an epoch; also tells what each round sampled."""
    rewards, filled, log = rewards_of(script), [], []

    def sample(batch: PromptBatch | None, number: int, size: int) -> GradedGroups | None:
        assert size == 2
        if batch is None:
            return None
        log.append((number, *batch.rows))
        return graded(batch, rewards, number)

    def next_prompts(counts):
        rows = sampler.take_next(counts)
        return batch_of(rows) if rows else None

    source = StepSource(sample, next_prompts, gather, None, 2, None)
    for rows in sampler:
        filled.append(DynamicSampling(max_rounds).fill(batch_of(rows), source))
        sampler.advance()
    return filled, log


def one_rank(script: str, size: int, max_rounds: int = 10):
    return run_rank(script, PlanSampler(SamplePlan.sequential(len(script), size)), max_rounds, lambda n: [n])


@pytest.mark.parametrize(
    ("script", "max_rounds", "log", "trained"),
    [
        # nothing to replace: nothing is drawn
        ("vvvvvv", 10, [(0, 0, 1, 2), (0, 3, 4, 5)], [[0, 1, 2], [3, 4, 5]]),
        # two missing, one of the two found, then the other: the next batch begins behind them
        ("0v1v0vvvv", 10, [(0, 0, 1, 2), (1, 3, 4), (2, 5), (0, 6, 7, 8)], [[1, 3, 5], [6, 7, 8]]),
        # failed graders vary nothing, also where one completion was graded
        ("xvhvvvv", 10, [(0, 0, 1, 2), (1, 3, 4)], [[1, 3, 4]]),
        # two rounds and no more: the first group without variance stays, in its place; two prompts fill no batch
        ("0v0100vvv", 2, [(0, 0, 1, 2), (1, 3, 4), (2, 5, 6)], [[0, 1, 6]]),
        # the plan ends: its leftover prompts are taken, and the last step keeps its size
        ("v0v0v", 10, [(0, 0, 1, 2), (1, 3), (2, 4)], [[0, 2, 4]]),
        ("v000v", 10, [(0, 0, 1, 2), (1, 3, 4)], [[0, 1, 4]]),
        ("00000", 10, [(0, 0, 1, 2), (1, 3, 4)], [[0, 1, 2]]),
        ("v0v", 10, [(0, 0, 1, 2)], [[0, 1, 2]]),
    ],
)
def test_rounds_worked_by_hand(script, max_rounds, log, trained):
    filled, sampled = one_rank(script, 3, max_rounds)
    assert sampled == log
    assert [kept.batch.rows for _, kept in filled] == trained
    assert [row for generated, _ in filled for row in generated.batch.rows] == [row for _, *rows in log for row in rows]


def test_a_filled_step_holds_its_groups_whole_and_counts_them():
    generated, trained = one_rank("01v10xv1vv", 4, 3)[0][0]
    # 4 groups, one varies; 3 more: one varies (6); 2 more (7, 8): one varies; 1 more (9)
    assert generated.batch.rows == list(range(10))
    assert trained.batch.rows == [2, 6, 8, 9]
    assert [prompt.uid for prompt in trained.batch.prompts] == ["p2", "p6", "p8", "p9"]
    assert trained.batch.ids == [[2], [6], [8], [9]]
    assert trained.total.tolist() == [[0.0, 1.0]] * 4
    assert trained.rewards["reward"].tolist() == [[0.0, 1.0]] * 4
    rollouts = trained.rollouts
    assert rollouts.texts == ["20", "21", "60", "61", "80", "81", "90", "91"]
    assert rollouts.tokens[5].tolist() == [8, 81, 81, 81]
    assert rollouts.completion_lengths.tolist() == [3, 3, 1, 1, 3, 3, 1, 1]
    assert refill_metrics(generated, trained) == {
        "rollouts/generated": 20.0,
        "rollouts/trained": 8.0,
        "rollouts/refill_rounds": 3.0,
        "rollouts/replaced_frac": 0.75,
    }


def test_a_step_that_needs_nothing_is_the_step_itself():
    first = graded(batch_of([0, 1]), rewards_of("vv"))
    source = StepSource(lambda batch, number, size: first, None, lambda n: [n], None, 2, None)
    generated, trained = DynamicSampling().fill(first.batch, source)
    assert trained is generated is first


def test_refills_without_variance_replace_nothing():
    generated, trained = one_rank("0v00", 2, 1)[0][0]
    assert generated.batch.rows == [0, 1, 2]
    assert trained.batch.rows == [0, 1]
    assert refill_metrics(generated, trained) == {
        "rollouts/generated": 6.0, "rollouts/trained": 4.0, "rollouts/refill_rounds": 1.0, "rollouts/replaced_frac": 0.0
    }  # fmt: skip


def test_a_rank_that_saw_the_plans_end_asks_no_more():
    asked = []
    sampler = PlanSampler(SamplePlan.sequential(5, 3))
    run_rank("00000", sampler, 10, lambda count: asked.append(count) or [count])
    assert asked == [3, 0]


def test_fewer_than_one_round_is_refused():
    assert DynamicSampling().max_rounds == 10
    with pytest.raises(InputError, match=r"DynamicSampling\.max_rounds is 0; write a whole number from 1 to"):
        DynamicSampling(max_rounds=0)


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.data())
def test_trained_groups_prefer_variance_and_keep_the_order(varied, drawn):
    size = drawn.draw(st.integers(1, len(varied)))
    kept = trained_groups(varied, size)
    assert len(kept) == size and kept == sorted(set(kept))
    assert sum(varied[group] for group in kept) == min(size, sum(varied))
    passed_over = [group for group in range(len(varied)) if group not in kept and not varied[group]]
    idle = [group for group in kept if not varied[group]]
    assert not idle or not passed_over or max(idle) < min(passed_over)


def lockstep(script: str, size: int, ranks: int, max_rounds: int):
    """Every rank in a thread of its own; a rank that gathers more or less often than the others breaks the barrier."""
    barrier, board = Barrier(ranks, timeout=5), [0] * ranks

    def rank_run(rank: int):
        def gather(count: int) -> list[int]:
            board[rank] = count
            barrier.wait()
            counts = list(board)
            barrier.wait()
            return counts

        sampler = PlanSampler(SamplePlan.sequential(len(script), size), rank=rank, world=ranks)
        try:
            outcome = run_rank(script, sampler, max_rounds, gather)
            gather(-1)  # all ranks are through the same number of steps
        except BaseException:
            barrier.abort()
            raise
        return outcome

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(rank_run, range(ranks)))


def test_ranks_with_different_needs_share_the_plan():
    #          batch  round 1 (2 for rank 0, none for rank 1), round 2, batch
    (zero, zero_log), (one, one_log) = lockstep("0v0v" + "0v" + "v" + "vvv0" + "v", 4, 2, 10)
    assert zero_log == [(0, 0, 2), (1, 4, 5), (2, 6), (0, 7, 9)]
    assert one_log == [(0, 1, 3), (0, 8, 10), (1, 11)]
    assert [trained.batch.rows for _, trained in zero] == [[5, 6], [7, 9]]
    assert [trained.batch.rows for _, trained in one] == [[1, 3], [8, 11]]
    assert [refill_metrics(*filled)["rollouts/refill_rounds"] for filled in zero + one] == [2, 0, 0, 1]


@settings(max_examples=60, deadline=None)
@given(st.text("v01x", min_size=4, max_size=40), st.sampled_from([(4, 2), (2, 2), (3, 3), (6, 3)]), st.integers(1, 4))
def test_ranks_take_the_steps_of_one(script, sizes, max_rounds):
    size, ranks = sizes
    alone, _ = one_rank(script, size, max_rounds)
    shared = lockstep(script, size, ranks, max_rounds)
    assert {len(filled) for filled, _ in shared} == {len(alone)}
    for step, (whole, _) in enumerate(alone):
        parts = [filled[step] for filled, _ in shared]
        assert sorted(row for generated, _ in parts for row in generated.batch.rows) == whole.batch.rows
        assert {len(trained.total) for _, trained in parts} == {size // ranks}
        varied = [row for _, trained in parts for row in trained.batch.rows if script[row] == "v"]
        all_varied = [row for row in whole.batch.rows if script[row] == "v"]
        assert sorted(varied) == all_varied


class SomeNeverVary(ParityReward):
    """Gives nothing for sums that three divides: their groups teach nothing. Counts the prompts it graded."""

    graded = 0

    def __call__(self, prompts, rollouts):
        self.graded += len(prompts)
        counts = torch.tensor([int(prompt.answer) % 3 > 0 for prompt in prompts])
        return super().__call__(prompts, rollouts) * counts[:, None]


class Witness(Callback):
    """Saves after every step, and notes what it trained on and logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[GradedGroups] = []
        self.logged: list[dict[str, float]] = []
        self.served: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.steps.append(pl_module.last_step)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.served.append(trainer.datamodule.planned.sampler._handed_out)
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def test_a_run_trains_on_groups_that_vary_and_resumes_exactly(tiny, tmp_path):
    def run(folder: str, ckpt_path: Path | None = None):
        (tmp_path / folder).mkdir()
        witness = Witness(tmp_path / folder)
        grpo = module(tiny, rewards=[SomeNeverVary()], dynamic_sampling=DynamicSampling(max_rounds=3))
        return fit(grpo, data(), trainer(tmp_path, 6, (witness,)), ckpt_path=ckpt_path), witness

    whole, seen = run("whole")
    assert len(seen.steps) == 6
    assert seen.served[0] < seen.served[1] < 24 and min(seen.served[2:]) < seen.served[1]  # a second epoch has begun
    for step, logged, served in zip(seen.steps, seen.logged, seen.served, strict=True):
        assert len(step.total) == 4
        assert step.varied.all() or served == 24  # at the plan's end there is nothing to replace a group with
        assert logged["rollouts/trained"] == 32
    assert seen.logged[0]["rollouts/generated"] == 8 * seen.served[0]
    generated = sum(logged["rollouts/generated"] for logged in seen.logged)
    assert generated > sum(logged["rollouts/trained"] for logged in seen.logged)
    assert max(logged["rollouts/replaced_frac"] for logged in seen.logged) > 0
    for step in (2, 4):
        resumed, again = run(f"from-{step}", tmp_path / "whole" / f"{step}.ckpt")
        assert [each.batch.rows for each in again.steps] == [each.batch.rows for each in seen.steps[step:]]
        assert largest_difference(weights(whole), weights(resumed)) == 0
    assert largest_difference(weights(whole), module(tiny).policy.load_model().state_dict()) > 1e-3


@pytest.mark.slow
def test_two_ranks_with_different_needs_end_on_the_weights_of_one(tiny, tmp_path):
    root = SCRIPT.parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for ranks in (1, 2):
        command = [sys.executable, str(SCRIPT), tiny, str(tmp_path), str(ranks)]
        ended = subprocess.run(command, env=environment, cwd=root, timeout=300, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-3000:]
    alone, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert [sorted(a + b) for a, b in zip(first["rows"], second["rows"], strict=True)] == [
        sorted(rows) for rows in alone["rows"]
    ]
    assert first["generated"] != second["generated"]
    assert first["generated"] + second["generated"] == alone["generated"] > 3 * 4
    assert largest_difference(alone["weights"], first["weights"]) < 2e-6
    assert largest_difference(first["weights"], second["weights"]) == 0


def test_variance_is_that_of_the_first_reward():
    """All wrong but of several lengths; right and wrong whose sum is equal; one grader failed; all failed."""
    nan = float("nan")
    right = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [nan, 1.0, 1.0], [nan, 1.0, 0.0], [nan, nan, nan]])
    length = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3, [0.0] * 3])
    rollouts = Rollouts.pack([[1]] * 5, [[2]] * 15, [[-1.0]] * 15, [False] * 15, ["x"] * 15, 3, 0)
    prompts = [Prompt(str(p), (), "") for p in range(5)]
    batch = PromptBatch(prompts, [[1]] * 5, list(range(5)))
    step = GradedGroups(batch, rollouts, {"math": right, "length": length}, right + length, [0] * 5)
    assert step.varied.tolist() == [False, True, False, True, False]
