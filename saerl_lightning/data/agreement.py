"""How far two groupings of the same prompts agree. Pure; knows nothing of where the groups came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def grouping_agreement(labels: Int[np.ndarray, " M"], topics: Sequence[str | None]) -> dict[str, float]:
    """Compares clusters with topics over the prompts that have a topic.

    Args:
        labels: cluster of each prompt, (M,).
        topics: topic of each, None where unknown; M of them.

    Returns:
        `nmi` (normalised mutual information, arithmetic mean), `ami` (the same, adjusted for chance) and `ari` (adjusted
        Rand index): 1 for equal groupings; around 0 for unrelated ones in `ami` and `ari`, while `nmi` grows with the number
        of groups. Empty where fewer than two topics occur.
    """
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

    numbers: dict[str, int] = {}
    topic = np.array([-1 if t is None else numbers.setdefault(t, len(numbers)) for t in topics], dtype=np.int64)
    if len(numbers) < 2:
        return {}
    known = topic >= 0
    pair = topic[known], labels[known]
    return {
        "nmi": float(normalized_mutual_info_score(*pair)),
        "ami": float(adjusted_mutual_info_score(*pair)),
        "ari": float(adjusted_rand_score(*pair)),
    }
