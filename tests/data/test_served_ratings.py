"""A prompt is never rated by its own label: neither directly, nor through a copy or a duplicate of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from saerl_lightning.data.curriculum import EasyToHard, WithoutFeatures
from saerl_lightning.data.filtering import QualityFilter
from saerl_lightning.data.labels import families
from saerl_lightning.data.probe_fits import fold_of
from saerl_lightning.data.probes import ElasticNetProbe, RidgeProbe, TreeProbe
from saerl_lightning.plan import SamplePlan
from saerl_lightning.prompts.corruption import CorruptedCopies
from saerl_lightning.records import Prompt

PROBES = [RidgeProbe(), ElasticNetProbe((0.1,)), TreeProbe(trees=30)]
NAMES = ["ridge", "elastic net", "trees"]


def prompt(uid, text, copied_from="", **labels):
    return Prompt.asking(uid, text, "1", labels=labels, copied_from=copied_from)


def world(n, seed):
    """Feature rows, and labels of which half is told by five columns and half is noise; the many columns can learn both."""
    random = np.random.default_rng(seed)
    features, noise = random.standard_normal((n, 300)), random.standard_normal(n)
    return features, features[:, :5].sum(1) / 5**0.5 + noise, noise


def served(curriculum, prompts, features):
    plan = SamplePlan.sequential(len(prompts), 8)
    return curriculum.apply(plan, prompts, features).difficulty


@pytest.mark.parametrize(
    ("operation", "probe"),
    [
        *((EasyToHard, probe) for probe in PROBES),
        *((lambda probe: WithoutFeatures(EasyToHard(probe=probe), count=1), probe) for probe in PROBES[:2]),
    ],
    ids=[*NAMES, "ridge without a column", "elastic net without a column"],
)
def test_ratings_know_nothing_of_the_noise_in_their_labels(operation, probe):
    features, labels, noise = world(400, seed=1)
    prompts = [prompt(f"p{i}", f"question {i}", difficulty=float(each)) for i, each in enumerate(labels)]
    rated = served(operation(probe=probe), prompts, features)
    assert spearmanr(rated, labels).statistic > 0.2  # it learned
    assert abs(spearmanr(rated, noise).statistic) < 0.15  # 3 standard errors of no correlation


@pytest.mark.parametrize("probe", PROBES, ids=NAMES)
def test_a_duplicate_does_not_give_a_label_away(probe):
    """Every question stands twice, spelt a little differently, with equal features and equal labels."""
    features, labels, noise = world(200, seed=2)
    prompts = [prompt(f"p{i}", f"Question  {i}", difficulty=float(labels[i])) for i in range(200)]
    prompts += [prompt(f"q{i}", f"question {i} ", difficulty=float(labels[i])) for i in range(200)]
    rated = served(EasyToHard(probe=probe), prompts, np.concatenate([features, features]))
    assert abs(spearmanr(rated, np.tile(noise, 2)).statistic) < 0.21  # 200 independent labels


def test_the_originals_of_corrupted_copies_are_dropped_no_more_often_than_those_of_intact_ones():
    """The features of a copy are its original's: the probe can tell which prompts were copied, and nothing else."""
    pool = [prompt(f"p{i}", f"Ann has {i} apples. She eats {i + 7} of them. How many are left?") for i in range(400)]
    copies = CorruptedCopies(200, seed=3).prompts(pool)
    place = {each.uid: i for i, each in enumerate(pool)}
    original = np.array([place[copy.uid.partition("#")[0]] for copy in copies])
    features = np.random.default_rng(4).standard_normal((400, 500))
    quality = QualityFilter(drop=0.2)
    plan = SamplePlan.sequential(600, 8).drop(dict.fromkeys(range(400, 600), "reference"))
    planned = quality.apply(plan, [*pool, *copies], np.concatenate([features, features[original]]))
    broken = np.array([copy.source.startswith("corrupted") for copy in copies])
    dropped = np.isin(original, list(planned.dropped))
    assert 90 <= broken.sum() <= 110
    assert abs(dropped[broken].mean() - dropped[~broken].mean()) < 0.17  # 3 standard errors of a share of .2 of 100


def test_a_prompt_with_nobody_elses_label_near_is_rated_by_all_labels():
    """By hand: ridge of a vanishing penalty through labels that lie on a line is that line, whoever is left out."""
    x = np.arange(12.0)
    prompts = [prompt(f"p{i}", f"question {i}", **({"difficulty": 2 * x[i] + 1} if i < 10 else {})) for i in range(12)]
    rated = served(EasyToHard(probe=RidgeProbe(alphas=(1e-9,))), prompts, x[:, None])
    assert rated == pytest.approx(2 * x + 1, abs=1e-4)


def test_families_by_hand():
    prompts = [
        prompt("a", "How many?"),
        prompt("b", "how  MANY?\n"),  # the words of a
        prompt("c", "Another"),
        prompt("c#corrupted", "Anoth", copied_from="c"),
        prompt("d", "anoth"),  # the words of a copy of c
        prompt("e", "4²"),
        prompt("f", "42"),  # one text in Unicode's compatibility form
        prompt("g", "4 2", copied_from="gone"),  # its original is not here
    ]
    assert families(prompts).tolist() == [0, 0, 2, 2, 2, 5, 5, 7]


@given(st.lists(st.integers(0, 12), min_size=8, max_size=60), st.integers(2, 5), st.booleans(), st.integers(0, 99))
def test_a_family_is_in_one_fold_and_folds_hold_as_many_families(family, folds, binary, seed):
    family = np.array(family)
    labels = np.random.default_rng(seed).integers(2 if binary else 100, size=len(family)).astype(float)
    fold = fold_of(labels, folds, seed, family)
    by_family = [set(fold[family == each].tolist()) for each in np.unique(family)]
    assert all(len(each) == 1 for each in by_family)
    sizes = np.bincount([next(iter(each)) for each in by_family], minlength=folds)
    assert sizes.max() - sizes.min() <= 1
