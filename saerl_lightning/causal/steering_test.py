"""Causal test of steering: adds a direction to the stream, or removes SAE features, while the model answers sums.

Every condition has the same questions and random numbers, so two conditions differ by the change only.
`steering_section` reports the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from saerl_lightning.causal.answers import Answers, Condition
from saerl_lightning.causal.steering import (
    AblateFeatures,
    AddDirection,
    Intervention,
    intervened,
    mean_norm,
    probe_direction,
    random_direction,
    read_streams,
)
from saerl_lightning.causal.steering_section import steering_section
from saerl_lightning.causal.subject import ROWS, TOKENS, MeasurementCache, Subject
from saerl_lightning.causal.sums import FIRST_INTEGER, Question, is_right
from saerl_lightning.data.features import equally_active, float64, top_columns
from saerl_lightning.errors import InputError
from saerl_lightning.progress import Bar
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.study.report.section import Section

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

# Added lengths as shares of the stream's norm. At a share of 0.5, SmolLM2-135M stops answering whatever the direction.
SHARES = (-0.25, -0.125, 0.125, 0.25)
TOP = 32  # number of features in the direction
ABLATED = (8, 32)  # numbers of removed features
CONTROLS = 3  # number of controls of each kind


def steering(
    subject: Subject,
    weights: Float[np.ndarray, " F"],
    features: Features,
    questions: Sequence[Question],
    samples: int,
    seed: int,
    cache: MeasurementCache,
    shares: Sequence[float] = SHARES,
) -> Section:
    """Measures pass rates with the probe's direction added, with its top features removed, and under controls.

    The direction is sum_j w_j dec_j over the 32 features with the largest effect on the probe, scaled to a share of the
    stream's mean norm. Controls have the same norm: random directions, and the same sum over random features that are
    active in as many rows. There are 37 conditions by default; each is stored in the cache once it is measured.

    Args:
        subject: Model, SAE and layer of the test.
        weights: Weights of a linear probe of difficulty, (F,).
        features: Features of the prompts that the probe was fitted on, (N, F).
        questions: Questions to ask; medium pass rates are best, as they can rise and fall.
        samples: Number of answers to each question and condition.
        seed: Seed of the answers and the controls.
        cache: Cache of measured answers.
        shares: Added lengths as shares of the stream's mean norm; a negative share subtracts the direction.

    Raises:
        InputError: if there are fewer than two questions, samples is below 1, a share is 0, or all weights have no
            effect.
    """
    _check(questions, samples, shares)
    ids = subject.ids(questions)
    streams = read_streams(subject.model, subject.layer, ids)
    # Rounded, because the last bits of a sum vary between machines and would change the keys of the cache.
    norm = float(f"{mean_norm(streams):.4g}")
    conditions = list(_conditions(subject, weights, features, norm, shares, seed))
    key = _key(subject, weights, questions, samples, seed)
    spread = float(np.std(float64(features) @ weights))
    answers: list[Answers] = []
    with (
        HFEngine(ROWS, fused=False) as engine,
        Bar(conditions, total=len(conditions), desc="steering", unit="condition") as bar,
    ):
        engine.start(subject.model, subject.tokenizer, subject.model.config.max_position_embeddings)
        for condition in bar:

            def measure(change: Intervention | None = condition.change) -> np.ndarray:
                rated = _ratings(subject, weights, streams, change) / spread
                return np.stack([*_asked(subject, engine, ids, questions, samples, seed, change), rated])

            rows = cache.rates(key | {"made of": condition.made_of}, measure)
            answers.append(Answers(condition, *rows))
    return steering_section(answers, samples, seed, norm, subject.layer)


def _check(questions: Sequence[Question], samples: int, shares: Sequence[float]) -> None:
    if len(questions) < 2 or samples < 1:
        raise InputError(
            f"steering with {len(questions)} questions and {samples} samples; give 2 questions and 1 sample"
        )
    if not any(share > 0 for share in shares) or 0 in shares or len(set(shares)) < len(shares):
        raise InputError(f"shares are {list(shares)}; write different numbers other than 0, one of them above 0")


def _key(
    subject: Subject, weights: Float[np.ndarray, " F"], questions: Sequence[Question], samples: int, seed: int
) -> dict[str, Any]:
    """Cache key of everything that the measurements of all conditions depend on."""
    return {
        "test": "steering",
        "subject": subject.identity,
        "questions": [[each.text, each.opening, each.answer] for each in questions],
        "samples": samples,
        "seed": seed,
        "tokens": TOKENS,
        "weights": [np.flatnonzero(weights).tolist(), _short(weights[weights != 0])],
    }


def _conditions(
    subject: Subject,
    weights: Float[np.ndarray, " F"],
    features: Features,
    norm: float,
    shares: Sequence[float],
    seed: int,
) -> Iterator[Condition]:
    yield Condition("nothing", "none", 0.0, 0, ["nothing"], None)
    top, width = top_columns(weights, features, TOP), len(subject.sae.W_dec[0])
    given = weights[top]
    directions: list[tuple[Any, str, list[Any], torch.Tensor]] = [
        ("probe", "the probe's direction", [top.tolist(), _short(given)], _sum(subject, given, top))
    ]
    for draw in range(CONTROLS):
        made_of = ["direction", seed + draw]
        directions.append(("direction", f"random direction {draw + 1}", made_of, random_direction(width, seed + draw)))
    for draw in range(CONTROLS):
        drawn = equally_active(top, features, seed + draw)
        made_of = [drawn.tolist(), _short(given)]
        directions.append(("features", f"random features {draw + 1}", made_of, _sum(subject, given, drawn)))
    for share in shares:
        for kind, name, made_of, direction in directions:
            change = AddDirection(direction.to(subject.model.device), share * norm)
            yield Condition(kind, name, share, len(top), ["add", share, norm, *made_of], change)
    for count in sorted({min(count, len(top)) for count in ABLATED}):
        drawn = [equally_active(top[:count], features, seed + draw) for draw in range(CONTROLS)]
        for place, columns in enumerate([top[:count], *drawn]):
            kind, name = ("random out", f"random {count} out, {place}") if place else ("top out", f"top {count} out")
            change = AblateFeatures(subject.sae, columns)
            yield Condition(kind, name, 0.0, count, ["ablate", columns.tolist()], change)


def _asked(
    subject: Subject,
    engine: RolloutEngine,
    ids: list[list[int]],
    questions: Sequence[Question],
    samples: int,
    seed: int,
    change: Intervention | None,
) -> tuple[list[float], list[float]]:
    """Samples answers; returns each question's share of right answers, and of answers that begin with a number."""
    sampling = Sampling(group_size=samples, max_tokens=TOKENS, seed=seed)
    with nullcontext() if change is None else intervened(subject.model, subject.layer, change) as reach:
        texts = engine.generate(ids, sampling).texts
    if reach is not None and not reach.positions:
        raise RuntimeError("the intervention changed nothing: the engine did not decode by the model's own forward")
    groups = [texts[first : first + samples] for first in range(0, len(texts), samples)]
    right = [sum(is_right(q, text) for text in own) / samples for q, own in zip(questions, groups, strict=True)]
    return right, [sum(FIRST_INTEGER.match(text) is not None for text in own) / samples for own in groups]


@torch.no_grad()
def _ratings(
    subject: Subject,
    weights: Float[np.ndarray, " F"],
    streams: Sequence[Float[torch.Tensor, "t d"]],
    change: Intervention | None,
) -> Float[np.ndarray, " N"]:
    """Difficulty that the probe predicts for each question from its changed stream, without the intercept."""
    moved = torch.cat(list(streams)) if change is None else change(torch.cat(list(streams)))
    known = torch.from_numpy(np.flatnonzero(weights)).to(moved.device)
    codes = subject.sae.encode(moved.to(subject.sae.W_dec))[:, known].double()
    rated = codes @ torch.from_numpy(weights[weights != 0]).to(codes)
    return np.array([float(own.mean()) for own in rated.split([len(stream) for stream in streams])])


def _sum(subject: Subject, weights: np.ndarray, columns: np.ndarray) -> Float[torch.Tensor, " d"]:
    return probe_direction(weights, subject.sae.W_dec, columns)


def _short(weights: np.ndarray) -> list[str]:
    return [f"{weight:.4g}" for weight in weights]
