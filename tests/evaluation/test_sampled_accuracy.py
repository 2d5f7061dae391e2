"""The accumulated metric equals the estimators on all questions at once, however they were split."""

from math import nan

import pytest
import torch

from saerl_lightning.evaluation.metrics import SampledAccuracy, macro_average
from saerl_lightning.records import Prompt, Rollouts

QUESTIONS = [
    # topic, level, scores, texts, truncated
    ("algebra", 1.0, [1, 1, 0, 0], ["7", "7", "8", "9"], [0, 0, 0, 1]),
    ("algebra", 2.0, [0, 0, 0, 0], ["1", "2", "3", "x"], [0, 0, 0, 0]),
    ("geometry", 2.0, [1, 1, 1, 1], ["5", "5.0", r"\boxed{5}", "5"], [1, 0, 0, 0]),
    (None, None, [nan, nan, nan, nan], ["", "", "", ""], [0, 0, 0, 0]),
]
EXPECTED = {
    "avg@4": (0.5 + 0 + 1) / 3,
    "pass@1": (0.5 + 0 + 1) / 3,
    "pass@2": (5 / 6 + 0 + 1) / 3,
    "pass@4": 2 / 3,
    "maj@4": 2 / 3,
    "truncated_frac": 2 / 16,
    "acc/topic/algebra": 0.25,
    "acc/topic/geometry": 1.0,
    "acc/level/1": 0.5,
    "acc/level/2": 0.5,
}


def update(metric: SampledAccuracy, questions: list) -> None:
    prompts = [
        Prompt.asking(str(i), "?", "1", topic=q[0], labels={"level": q[1]} if q[1] else {})
        for i, q in enumerate(questions)
    ]
    texts = [text for q in questions for text in q[3]]
    truncated = [bool(t) for q in questions for t in q[4]]
    blank = [[1]] * len(texts)
    rollouts = Rollouts.pack([[0]] * len(prompts), blank, [[0.0]] * len(texts), truncated, texts, 4, 0)
    metric.update(prompts, rollouts, torch.tensor([q[2] for q in questions]).float())


@pytest.mark.parametrize("splits", [(4,), (1, 3), (1, 1, 1, 1)])
def test_estimates_by_hand_for_any_split(splits):
    metric = SampledAccuracy(4, ["algebra", "geometry", "unseen"])
    rest = list(QUESTIONS)
    for size in splits:
        update(metric, rest[:size])
        rest = rest[size:]
    assert {name: value.item() for name, value in metric.compute().items()} == pytest.approx(EXPECTED)
    torch.testing.assert_close(metric.per_question(), torch.tensor([0.5, 0.0, 1.0, nan]), equal_nan=True)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_ranks_are_joined(first):
    """Two ranks, the first with 0, 1 or 3 of the four questions, give what one rank gives for all."""
    ranks = [SampledAccuracy(4, ["algebra", "geometry"]) for _ in range(2)]
    for rank, questions in zip(ranks, (QUESTIONS[:first], QUESTIONS[first:]), strict=True):
        if questions:
            update(rank, questions)
    names = iter(ranks[0].metric_state)

    def gather(state: torch.Tensor, group: object) -> list[torch.Tensor]:
        """What both ranks hold of the next state; called once a state, in their order."""
        other = torch.cat(getattr(ranks[1], next(names)))
        assert state.dtype == other.dtype
        assert state.ndim == other.ndim
        return [state, other]

    ranks[0].dist_sync_fn = gather
    ranks[0].distributed_available_fn = lambda: True
    ranks[0]._update_count = 1  # else torchmetrics warns that this rank saw nothing
    assert {name: value.item() for name, value in ranks[0].compute().items()} == pytest.approx(EXPECTED)
    assert next(names, None) is None


def test_a_reset_metric_counts_no_earlier_questions():
    metric = SampledAccuracy(4, ["algebra", "geometry"])
    update(metric, QUESTIONS[1:2])
    metric.reset()
    update(metric, QUESTIONS)
    assert metric.compute()["avg@4"].item() == pytest.approx(0.5)


def test_macro_average_weighs_sets_equally():
    sets = {
        "gsm8k": {"avg@4": 0.2, "pass@1": 0.2, "pass@4": 0.6, "maj@4": 0.4, "acc/level/1": 1.0},
        "aime": {"avg@32": 0.4, "pass@1": 0.4, "pass@32": 0.8, "maj@32": 0.6, "acc/level/1": 0.0},
    }
    assert macro_average(sets) == pytest.approx({"avg@k": 0.3, "pass@1": 0.3, "maj@k": 0.5})
    assert macro_average({"aime": sets["aime"]}) == {"avg@k": 0.4, "pass@1": 0.4, "pass@32": 0.8, "maj@k": 0.6}
    assert macro_average({}) == {}


def test_every_question_keeps_its_topic():
    metric = SampledAccuracy(4, ["algebra", "geometry"])
    update(metric, QUESTIONS)
    assert metric.topic_of_question() == ["algebra", "algebra", "geometry", ""]
