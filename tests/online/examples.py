"""One or more examples of every shipped belief and rule, a pool of prompts, and candidates to arrange."""

from collections.abc import Callable

import numpy as np

from saerl_lightning.online.beliefs.anchored_beta import AnchoredBeta
from saerl_lightning.online.beliefs.belief import Belief, chance_to_vary
from saerl_lightning.online.beliefs.feature_posterior import FeaturePosterior
from saerl_lightning.online.beliefs.hidden_markov import HiddenMarkov
from saerl_lightning.online.beliefs.interpolated_beta import InterpolatedBeta
from saerl_lightning.online.beliefs.last_rate import LastRate
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.beliefs.reference_attention import ReferenceAttention
from saerl_lightning.online.beliefs.sparse_posterior import SparsePosterior
from saerl_lightning.online.rules.admit import Admit
from saerl_lightning.online.rules.easiest_first import EasiestFirst
from saerl_lightning.online.rules.exclude_solved import ExcludeSolved
from saerl_lightning.online.rules.highest_chance import HighestChance
from saerl_lightning.online.rules.learnability import Learnability
from saerl_lightning.online.rules.nearest import Nearest
from saerl_lightning.online.rules.rule import Candidates, Rule
from saerl_lightning.online.rules.softmax_learnability import SoftmaxLearnability
from saerl_lightning.online.rules.softmax_nearest import SoftmaxNearest
from saerl_lightning.online.rules.weighted_pools import WeightedPools
from saerl_lightning.records import Prompt

N = 24
BELIEFS: dict[str, list[Callable[[], Belief]]] = {
    "PromptBeta": [lambda: PromptBeta(keep=0.5), PromptBeta],
    "FeaturePosterior": [lambda: FeaturePosterior(components=3)],
    "SparsePosterior": [SparsePosterior],
    "AnchoredBeta": [AnchoredBeta, lambda: AnchoredBeta(label="weak", keep=0.9)],
    "LastRate": [LastRate],
    "InterpolatedBeta": [
        lambda: InterpolatedBeta("weak", "strong"),
        lambda: InterpolatedBeta("weak", "weak", pseudo=0.9),
    ],
    "HiddenMarkov": [HiddenMarkov, lambda: HiddenMarkov(prior=0.2, keep=1.0)],
    "ReferenceAttention": [lambda: ReferenceAttention(components=3), lambda: ReferenceAttention(6, temperature=0.5)],
}
RULES: dict[str, list[Rule]] = {
    "Nearest": [Nearest(), Nearest(0.8, thompson=False)],
    "HighestChance": [HighestChance()],
    "Admit": [Admit(0.6)],
    "EasiestFirst": [EasiestFirst()],
    "Learnability": [Learnability()],
    "SoftmaxLearnability": [SoftmaxLearnability(), SoftmaxLearnability(0.0)],
    "SoftmaxNearest": [SoftmaxNearest(), SoftmaxNearest(0.2, 0.5)],
    "WeightedPools": [WeightedPools(), WeightedPools((0.5,), (0.0,))],
    "ExcludeSolved": [ExcludeSolved(), ExcludeSolved(0.3)],
}
DRAWING = {"Nearest", "SoftmaxLearnability", "SoftmaxNearest", "WeightedPools"}  # at random


def pool(count: int = N) -> list[Prompt]:
    """Prompts with labels; every fifth has none of the weak anchor."""
    return [
        Prompt.asking(
            f"p{i}",
            f"word {i}",
            labels={"difficulty": 100.0 * (i % 2), "strong": 2.0 * (i % 11)}
            | ({"weak": 5.0 * (i % 17)} if i % 5 else {}),
        )
        for i in range(count)
    ]


def features(count: int = N) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 5))


def begun(make: Callable[[], Belief]) -> Belief:
    belief = make()
    belief.begin(pool(), features())
    return belief


def candidates(rates, size=10.0, batch_size=2, cluster=None, seen=None) -> Candidates:
    rates = np.array(rates, dtype=float)
    a, b = size * rates, size * (1 - rates)
    none = np.full(len(rates), -1)
    return Candidates(
        np.arange(len(rates)) + 100,
        a,
        b,
        chance_to_vary(a, b, 8),
        np.zeros(len(rates), dtype=int) if seen is None else np.array(seen),
        none if cluster is None else np.array(cluster),
        batch_size,
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def served(belief: Belief, truth: np.ndarray, rows: np.ndarray, group: int = 8) -> None:
    """Serves rows four at a time, and grades each group by its true pass rate."""
    random = np.random.default_rng(1)
    for start in range(0, len(rows), 4):
        step = rows[start : start + 4]
        belief.learn(step, random.binomial(group, truth[step]).astype(float), np.full(len(step), float(group)))


def learn_one(belief: Belief, row: int, right: float, graded: float = 8.0) -> None:
    belief.learn(np.array([row]), np.array([right]), np.array([graded]))


def believed(belief: Belief, *rows: int) -> list[list[float]]:
    """Parameters a, b of each row."""
    return np.array(belief.beta(np.array(rows))).T.tolist()
