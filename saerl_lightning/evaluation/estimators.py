"""Estimators from several samples per question (avg@k, pass@k, maj@k, bootstrap interval). NaN scores are left out.

Pure functions. A NaN score means that the grader failed. Q questions, k or n samples per question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def avg_at_k(scores: Float[Tensor, "Q k"]) -> Float[Tensor, " Q"]:
    """Averages the scores of each question; NaN for a question without graded samples."""
    return scores.nanmean(1)


def pass_at_k(correct: Float[Tensor, "Q n"], k: int) -> Float[Tensor, " Q"]:
    """Computes the unbiased estimate of the probability that at least one of k samples is correct: 1 - C(n-c, k) / C(n, k).

    It is computed as a product of k factors below 1, so that no binomial coefficient overflows.

    Args:
        correct: 1 for a correct sample, 0 for a wrong one, NaN if the grader failed.
        k: Number of samples drawn per question.

    Returns:
        One estimate per question; NaN for a question with fewer than k graded samples.

    Source: Chen et al., arXiv 2107.03374, eq. 1.
    """
    graded = (~correct.isnan()).sum(1, keepdim=True).double()  # (Q, 1), n
    wrong = graded - correct.nansum(1, keepdim=True).double()  # (Q, 1), n - c
    drawn = torch.arange(k, device=correct.device)  # (k,)
    all_wrong = ((wrong - drawn).clamp(min=0) / (graded - drawn)).prod(1)  # (Q,), C(n-c, k) / C(n, k)
    enough = graded[:, 0] >= k
    return torch.where(enough, 1 - all_wrong, torch.nan).to(correct.dtype)


def maj_at_k(answers: Sequence[Sequence[str]], scores: Float[Tensor, "Q k"]) -> Float[Tensor, " Q"]:
    """Scores each question's most frequent answer. Tied answers give the mean of their scores.

    Empty answers and samples with NaN scores are not counted.

    Args:
        answers: Extracted answer of each sample, "" for none.
        scores: Score of each sample, (Q, k).

    Returns:
        One score per question: 0 if no sample has an answer, NaN if no sample was graded.

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
    """Computes a percentile bootstrap interval of the mean over questions.

    Args:
        per_question: One estimate per question. NaN estimates are left out.
        level: Confidence level, the share of resampled means inside the interval.
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end of the interval; both NaN if no question is left.
    """
    values = np.asarray(per_question, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [rng.choice(values, len(values)).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
