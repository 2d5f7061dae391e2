"""Estimates from several samples a question. Pure; NaN says that the grader failed, and has no say.

Q questions, k or n samples a question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def avg_at_k(scores: Float[Tensor, "Q k"]) -> Float[Tensor, " Q"]:
    """Averages each question's scores; NaN for a question with no graded sample."""
    return scores.nanmean(1)


def pass_at_k(correct: Float[Tensor, "Q n"], k: int) -> Float[Tensor, " Q"]:
    """Estimates without bias the chance that at least one of k samples is correct: 1 - C(n-c, k) / C(n, k).

    Written as a product of k factors below 1, so that no binomial overflows.

    Args:
        correct: 1 for a correct sample, 0 for a wrong one, NaN where the grader failed.
        k: samples drawn.

    Returns:
        One estimate a question; NaN for a question with fewer than k graded samples.

    Source: Chen et al., arXiv 2107.03374, eq. 1.
    """
    graded = (~correct.isnan()).sum(1, keepdim=True).double()  # (Q, 1), n
    wrong = graded - correct.nansum(1, keepdim=True).double()  # (Q, 1), n - c
    drawn = torch.arange(k, device=correct.device)  # (k,)
    all_wrong = ((wrong - drawn).clamp(min=0) / (graded - drawn)).prod(1)  # (Q,), C(n-c, k) / C(n, k)
    enough = graded[:, 0] >= k
    return torch.where(enough, 1 - all_wrong, torch.nan).to(correct.dtype)


def maj_at_k(answers: Sequence[Sequence[str]], scores: Float[Tensor, "Q k"]) -> Float[Tensor, " Q"]:
    """Scores each question's most frequent answer; tied answers give the mean of their scores.

    An empty answer and a sample with a NaN score have no vote.

    Args:
        answers: the extracted answer of each sample, "" where there is none.
        scores: of the same samples.

    Returns:
        One score a question: 0 where no sample gave an answer, NaN where no sample was graded.

    Source: self-consistency, Wang et al., arXiv 2203.11171.
    """
    return torch.tensor(
        [_majority(votes, row) for votes, row in zip(answers, scores.tolist(), strict=True)],
        dtype=scores.dtype,
        device=scores.device,
    )


def _majority(answers: Sequence[str], scores: Sequence[float]) -> float:
    graded = [(answer, score) for answer, score in zip(answers, scores, strict=True) if not np.isnan(score)]
    if not graded:
        return float("nan")
    votes = Counter(answer for answer, _ in graded if answer)
    winners = {answer for answer, count in votes.items() if count == max(votes.values())}
    return float(np.mean([score for answer, score in graded if answer in winners])) if winners else 0.0


def bootstrap_interval(
    per_question: Float[np.ndarray, " Q"], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Gives a percentile bootstrap interval of the mean over questions.

    Args:
        per_question: one estimate a question; NaN questions are left out.
        level: share of resampled means inside the interval.
        resamples: samples of the questions, with replacement.
        seed: of the resampling.

    Returns:
        Lower and upper end; both NaN if no question is left.
    """
    values = np.asarray(per_question, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
