"""A batch that is handed out before its turn: every process's share, frozen against later decisions, also by a resume."""

from __future__ import annotations

import numpy as np

from saerl_lightning.data.serving import EPOCH_START, PlanSampler, Progress
from saerl_lightning.plan import SamplePlan


def test_each_process_draws_its_share_once_and_none_at_the_epochs_end():
    """Ten prompts in batches of four, on two processes: two batches, and two prompts that fill none."""
    samplers = [PlanSampler(SamplePlan.sequential(10, 4), rank=rank, world=2) for rank in range(2)]
    for rank, sampler in enumerate(samplers):
        batches = iter(sampler)
        assert next(batches) == [rank, rank + 2]
        assert sampler.draw_ahead() == sampler.draw_ahead() == [rank + 4, rank + 6]
        assert sampler.progress == EPOCH_START  # neither is trained
        sampler.advance()
        assert sampler.progress == Progress(1, 4)
        assert next(batches) == [rank + 4, rank + 6]
        assert sampler.draw_ahead() is None
        sampler.advance()
        assert sampler.progress == Progress(2, 8)
        assert next(batches, "over") == "over"
        assert sampler.progress == EPOCH_START
        assert next(iter(sampler)) == [rank, rank + 2]


def test_what_was_drawn_ahead_of_an_epoch_that_is_left_is_not_served_in_the_next():
    sampler = PlanSampler(SamplePlan.sequential(8, 2))
    assert next(iter(sampler)) == [0, 1]
    assert sampler.draw_ahead() == [2, 3]
    assert next(iter(sampler)) == [0, 1]


class Rotating:
    """Arranges what is left by a number that training changes: rotated by it."""

    def __init__(self) -> None:
        self.learned = 0
        self.asked: list[list[int]] = []

    def __call__(self, handed_out):
        self.asked.append(handed_out.tolist())
        rest = np.setdiff1d(np.arange(12), handed_out)
        rows = np.concatenate([handed_out, np.roll(rest, -self.learned)])
        return SamplePlan.sequential(12, 3).go_on(0, rows)


def test_later_decisions_do_not_change_what_was_drawn_ahead():
    """By hand: 0 1 2; then 3 4 5 drawn with nothing learned; then, rotated by 2, 8 9 10 of 6 to 11."""
    revise = Rotating()
    sampler = PlanSampler(SamplePlan.sequential(12, 3), revise=revise)
    batches = iter(sampler)
    assert next(batches) == [0, 1, 2]
    assert sampler.draw_ahead() == [3, 4, 5]
    revise.learned = 2
    sampler.advance()
    assert sampler.handed_out.tolist() == [0, 1, 2, 3, 4, 5]
    assert next(batches) == [3, 4, 5]
    assert sampler.draw_ahead() == [8, 9, 10]
    assert revise.asked == [[], [0, 1, 2], [0, 1, 2, 3, 4, 5]]

    # A resume behind the first batch: the second one is served as it was drawn, the third as it would have been.
    again = PlanSampler(
        SamplePlan.sequential(12, 3), Progress(1, 3), revise=revise, frozen=np.array([0, 1, 2, 3, 4, 5])
    )
    batches = iter(again)
    assert next(batches) == [3, 4, 5]
    assert again.draw_ahead() == [8, 9, 10]


def test_a_resume_in_the_middle_of_a_step_serves_both_batches_as_they_were_drawn():
    """The batch in training and the one behind it are handed out, and neither is trained."""
    revise = Rotating()
    revise.learned = 5
    again = PlanSampler(SamplePlan.sequential(12, 3), revise=revise, frozen=np.array([0, 1, 2, 3, 4, 5]))
    batches = iter(again)
    assert next(batches) == [0, 1, 2]
    assert again.draw_ahead() == [3, 4, 5]
    assert next(batches) == [3, 4, 5]
