"""One step ahead, stopped anywhere: a resumed run ends on the same bits, with what the gone weights sampled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saerl_lightning.records import PromptBatch, Rollouts, Sampling
from saerl_lightning.training.grading import GradedGroups
from saerl_lightning.training.lookahead.checkpoint import share_of, stored
from tests.data.served_prompts import ByResults, SaveEverywhere
from tests.training.conftest import ParityReward, Sums, data, weights
from tests.training.stale import run

ROOT = Path(__file__).parents[2]
STEPS = 8  # more than an epoch of six


class Unseen(Sums):
    """Three sums that are not trained on."""

    def load(self):
        return Sums(63).load()[60:]


def served(online):
    return data(online=online, val={"v": Unseen()}, val_sampling=Sampling(group_size=2, max_tokens=4))


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


VALIDATED = {"val_check_interval": 2}


@pytest.mark.slow
@pytest.mark.parametrize("online", [None, ByResults()], ids=["plan", "online"])
def test_a_run_resumed_anywhere_ends_on_the_same_bits(tiny, tmp_path, online):
    """After each step, validation and epoch; what is logged of the steps is the same too, times left out."""
    whole, record = run(tiny, tmp_path, STEPS, SaveEverywhere(tmp_path), datamodule=served(online), limits=VALIDATED)
    assert [row["rollouts/staleness"] for row in record.rows] == [0, 1, 1, 1, 1, 1, 0, 1]
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert {path.stem.split("-")[1] for path in checkpoints} == {"batch", "validation", "epoch"}
    for checkpoint in checkpoints:
        done = int(checkpoint.stem.split("-")[0])
        held = torch.load(checkpoint, weights_only=True).get("ahead")
        assert (held is None) == (done == 6), "an epoch's first batch is sampled by the weights of its step"
        if done == STEPS:
            continue
        made, resumed = run(tiny, tmp_path, STEPS, datamodule=served(online), limits=VALIDATED, ckpt_path=checkpoint)
        assert resumed.served == record.served[done:], checkpoint.name
        assert equal(weights(made), weights(whole)), checkpoint.name
        assert made.weight_version == whole.weight_version, checkpoint.name
        for ours, theirs in zip(resumed.rows, record.rows[done:], strict=True):
            for name, value in ours.items():
                timed = name.startswith(("time/", "throughput/")) or name.endswith("/seconds")
                assert timed or name.startswith("val/") or value == pytest.approx(theirs[name], nan_ok=True), name


def test_what_is_decided_while_training_runs_changes_what_is_served(tiny, tmp_path):
    """So that the test above is one: the batch in hand was drawn before the last outcomes, and stays as drawn."""
    _, decided = run(tiny, tmp_path, STEPS, datamodule=served(ByResults()))
    _, planned = run(tiny, tmp_path, STEPS, datamodule=served(None))
    assert decided.served != planned.served
    for record in (decided, planned):
        assert sorted(row for rows in record.served[:6] for row in rows) == list(range(24))


def test_a_batch_of_other_settings_is_sampled_again(tiny, tmp_path):
    run(tiny, tmp_path, 2, SaveEverywhere(tmp_path))
    _, same = run(tiny, tmp_path, 3, ckpt_path=tmp_path / "2-batch.ckpt")
    longer = Sampling(group_size=8, max_tokens=5, seed=3)
    _, other = run(tiny, tmp_path, 3, ckpt_path=tmp_path / "2-batch.ckpt", sampling=longer)
    assert (same.rows[0]["rollouts/staleness"], other.rows[0]["rollouts/staleness"]) == (1, 0)
    assert other.rows[0]["completions/length_max"] <= 5


def test_a_run_that_goes_on_is_one_that_was_never_over(tiny, tmp_path):
    """The last step samples ahead too."""
    run(tiny, tmp_path, 3, SaveEverywhere(tmp_path))
    on, _ = run(tiny, tmp_path, 5, ckpt_path=tmp_path / "3-batch.ckpt")
    whole, _ = run(tiny, tmp_path, 5)
    assert equal(weights(on), weights(whole))


SCRIPT = """
import os, signal, sys
from pathlib import Path
import lightning, torch
from tests.data.served_prompts import SaveEverywhere
from tests.training.conftest import weights
from tests.training.stale import run
from tests.training.test_lookahead_resume import VALIDATED, served, ByResults

policy, folder, killed_at, resume = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

class Kill(lightning.Callback):
    # In the middle of the step, while the next batch is sampled.
    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

made, _ = run(policy, folder, 8, SaveEverywhere(folder), Kill(), datamodule=served(ByResults()), limits=VALIDATED,
              ckpt_path=resume or None)
torch.save(weights(made), folder / "end.pt")
"""


@pytest.mark.slow
def test_a_killed_process_resumes_on_the_same_bits(tiny, tmp_path):
    """By SIGKILL in the middle of steps 2, 5 and 8, each going on from the checkpoint of the step before."""
    whole, _ = run(tiny, tmp_path, STEPS, datamodule=served(ByResults()), limits=VALIDATED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    resume = ""
    for killed_at in (1, 4, 7, -1):
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, tiny, str(tmp_path), str(killed_at), resume]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False
        )
        assert done.returncode == (0 if killed_at < 0 else -signal.SIGKILL), done.stderr[-3000:]
        resume = str(tmp_path / f"{killed_at}-batch.ckpt")
    assert equal(torch.load(tmp_path / "end.pt", weights_only=True), weights(whole))


# -- several processes -------------------------------------------------------------------------------------------------


def graded(rows: list[int], longest: int) -> GradedGroups:
    """Groups of two for each row r: completions of one token and of up to `longest`, rewards r and r + 0.5."""
    prompts = Sums(24).load()
    lengths = [(r + g) % longest + 1 for r in rows for g in range(2)]
    rollouts = Rollouts.pack(
        [[r, r + 1] for r in rows], [[7] * n for n in lengths], [[-0.5] * n for n in lengths],
        [False] * len(lengths), [f"{n}" for n in lengths], 2, 5,
    )  # fmt: skip
    rewards = torch.tensor([[r, r + 0.5] for r in rows])
    batch = PromptBatch([prompts[r] for r in rows], [[r, r + 1] for r in rows], rows)
    return GradedGroups(batch, rollouts, {"parity": rewards}, rewards, [0] * len(rows), spent={"a": float(rows[0])})


def test_every_number_of_processes_gets_its_share_of_a_batch_as_it_was_sampled():
    """Rank r of n has places r, r + n, …: what two ranks saved is given to one, two and four."""
    saved = stored([graded([8, 3, 9, 5], 2), graded([4, 1, 6, 2], 7)], Sampling(2))
    assert saved["rows"] == [8, 4, 3, 1, 9, 6, 5, 2]
    for ranks in (1, 2, 4):
        for rank in range(ranks):
            batch = graded(saved["rows"][rank::ranks], 7).batch
            own = share_of(saved, batch, [ParityReward()], rank, ranks)
            assert own.total.tolist() == [[r, r + 0.5] for r in batch.rows]
            assert own.rollouts.tokens[::2, 0].tolist() == batch.rows
            assert own.rollouts.tokens.shape[1] == own.rollouts.lengths.max()
            assert own.rollouts.weight_version.eq(5).all()
    again = share_of(saved, graded([8, 3, 9, 5], 2).batch, [ParityReward()], 0, 2)
    assert torch.equal(again.rollouts.tokens, graded([8, 3, 9, 5], 2).rollouts.tokens)
    assert again.spent == {"a": 8.0}
    assert share_of(saved, graded([8, 3, 9, 4], 2).batch, [ParityReward()], 0, 2) is None
