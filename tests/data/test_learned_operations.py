"""The operations that read features: what they find where it was planted, and what they refuse."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import adjusted_rand_score

from saerl_lightning.data.clustering import KMeansClusters, PermutedClusters
from saerl_lightning.data.curriculum import EasyToHard
from saerl_lightning.data.diverse import DiverseBatches, assign_diverse, log_determinant
from saerl_lightning.data.filtering import LabelFilter, LengthFilter, MatchedFilter, QualityFilter
from saerl_lightning.data.kmeans import largest_first, nearest, spherical_kmeans
from saerl_lightning.data.mixing import FullMixing
from saerl_lightning.data.planning import make_plan
from saerl_lightning.data.probes import ElasticNetProbe, RidgeProbe
from saerl_lightning.data.scores import spearman
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.records import Prompt
from saerl_lightning.signals.source import SignalSource

RIDGE = RidgeProbe(alphas=(0.1, 1.0, 10.0))
GROUPS, COLUMNS = 5, 400


class Rows(SignalSource):
    """Rows that were made before."""

    def __init__(self, rows):
        self.rows = rows

    def features(self, prompts):
        return self.rows

    def fingerprint(self, prompts):
        return "rows"


def world(n=600, labelled=1.0, seed=0):
    """Sparse rows in five groups with columns of their own; difficulty and quality are sums over other columns."""
    random = np.random.default_rng(seed)
    group = random.permutation(n) % GROUPS
    rows = (random.random((n, COLUMNS)) < 0.05) * random.uniform(0.5, 1.5, (n, COLUMNS))
    for g in range(GROUPS):
        own = slice(g * 20, (g + 1) * 20)
        rows[group == g, own] += (random.random((np.sum(group == g), 20)) < 0.5) * 1.0
    difficulty, quality = (rows[:, 150:200] @ random.standard_normal(50) for _ in range(2))
    known = random.random(n) < labelled
    prompts = [
        Prompt.asking(
            f"p{i}",
            f"{i} " + "x" * int(random.integers(1, 50)),
            "1",
            topic=f"t{group[i]}",
            labels={"difficulty": float(difficulty[i]), "quality": float(quality[i])} if known[i] else {},
        )
        for i in range(n)
    ]
    return prompts, csr_array(rows), group, difficulty, quality


def test_k_means_finds_planted_groups_on_planned_prompts_and_labels_all():
    prompts, rows, group, *_ = world()
    plan = SamplePlan.sequential(600, 8).drop(dict.fromkeys(range(0, 600, 3), "left out"))
    for settings in ({}, {"components": None}, {"minibatch_above": 100}):
        clusters = KMeansClusters(GROUPS, **settings)
        planned = clusters.apply(plan, prompts, rows)
        assert adjusted_rand_score(group, planned.cluster) > 0.95
        sizes = np.bincount(planned.cluster[plan.rows], minlength=GROUPS)
        assert (np.diff(sizes) <= 0).all() and sizes.sum() == 400  # the largest first
        metrics = clusters.metrics()
        assert metrics["clusters"] == 5 and metrics["size_max"] == sizes[0] and metrics["size_min"] == sizes[-1]
        assert metrics["ari"] > 0.9 and metrics["nmi"] > 0.9


def test_clusters_depend_on_direction_alone_and_not_on_the_order_of_the_plan():
    prompts, rows, *_ = world()
    plan = SamplePlan.sequential(600, 8)
    labels = KMeansClusters(GROUPS).label(plan, prompts, rows)
    scaled = csr_array(rows * np.random.default_rng(0).uniform(0.1, 9, 600)[:, None])
    assert adjusted_rand_score(KMeansClusters(GROUPS).label(plan, prompts, scaled), labels) > 0.95
    backwards = plan.reorder(plan.rows[::-1].copy())
    assert np.array_equal(KMeansClusters(GROUPS).label(backwards, prompts, rows), labels)


def test_spherical_k_means_ends_at_a_fixed_point():
    units = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    centres = spherical_kmeans(units, 3, 0, minibatch=False)
    labels = nearest(units, centres)
    for k in range(3):
        mean = units[labels == k].sum(axis=0)
        assert centres[k] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_numbers_go_by_size():
    labels = np.array([2, 2, 0, 1, 1, 1, 3])
    assert largest_first(labels, np.arange(6), 4).tolist() == [1, 1, 2, 0, 0, 0, 3]  # row 6 is not planned
    assert largest_first(np.array([1, 0]), np.arange(2), 2).tolist() == [1, 0]  # equal: the old number decides


@pytest.mark.parametrize("components", [None, 8])
def test_rows_of_zeros_and_duplicates_get_a_cluster(components):
    prompts, rows, *_ = world(60)
    silent = rows.toarray()
    silent[:5] = 0
    for features in (csr_array(silent), silent, csr_array(np.zeros((60, 30))), np.ones((60, 30))):
        labels = KMeansClusters(4, components=components).label(SamplePlan.sequential(60, 8), prompts, features)
        assert labels.shape == (60,) and set(labels) <= set(range(4)) and labels.min() == 0


def test_quality_filter_drops_the_worst_and_says_why():
    prompts, rows, _, _, quality = world()
    taught = QualityFilter(probe=RIDGE, drop=0.2)
    kept = taught.apply(SamplePlan.sequential(600, 8), prompts, rows)
    metrics = taught.metrics()
    assert len(kept.dropped) == metrics["dropped"] == 120 and metrics["kept"] == 480
    assert quality[list(kept.dropped)].mean() < np.quantile(quality, 0.25)
    assert (kept.quality[list(kept.dropped)] < metrics["threshold"]).all()
    assert (kept.quality[kept.rows] >= metrics["threshold"]).all()
    assert set(kept.dropped.values()) == {f"predicted quality below {metrics['threshold']:.4g}, the 0.2 quantile"}
    assert metrics["probe/labels"] == 600 and metrics["probe/spearman_low"] > 0.8


def test_quality_filter_goes_by_a_threshold():
    prompts, rows, *_ = world()
    taught = QualityFilter(probe=RIDGE, threshold=0.0)
    kept = taught.apply(SamplePlan.sequential(600, 8), prompts, rows)
    assert sorted(kept.dropped) == np.flatnonzero(kept.quality < 0).tolist()
    assert set(kept.dropped.values()) == {"predicted quality below 0, the threshold"}


def test_labels_are_learned_from_prompts_that_are_never_served_and_the_cut_is_made_among_the_planned():
    prompts, rows, *_ = world()
    pool, reference = 400, np.arange(400, 600)
    bare = [Prompt(p.uid, p.messages, p.answer, labels=p.labels if i >= pool else {}) for i, p in enumerate(prompts)]
    binary = [
        Prompt(p.uid, p.messages, p.answer, labels={"quality": float(p.labels["quality"] > 0)}) if p.labels else p
        for p in bare
    ]
    plan = SamplePlan.sequential(600, 8).drop(dict.fromkeys(reference.tolist(), "reference"))
    taught = QualityFilter(probe=RIDGE, drop=0.25)
    kept = taught.apply(plan, binary, rows)
    assert taught.metrics()["probe/labels"] == 200 and taught.metrics()["probe/auc_low"] > 0.55
    assert len(kept.rows) == 300
    assert taught.metrics()["threshold"] == pytest.approx(np.quantile(kept.quality[:pool], 0.25))


def test_all_prompts_filtered_out_is_refused_with_the_reason():
    prompts, rows, *_ = world(100)
    with pytest.raises(InputError, match=r"no prompt is left of 100 .*predicted quality below 1e\+09, the threshold"):
        make_plan(prompts, {}, 8, 0, Rows(rows), {"filtering": QualityFilter(probe=RIDGE, threshold=1e9)})


def test_easy_to_hard_orders_by_prediction_within_clusters():
    prompts, rows, _, difficulty, _ = world(labelled=0.5)
    order = EasyToHard(labels=200)
    operations = {"clustering": KMeansClusters(GROUPS), "curriculum": order}
    plan = make_plan(prompts, {}, 8, 0, Rows(rows), operations)
    assert spearman(plan.difficulty, difficulty) > 0.8
    assert order.metrics()["probe/labels"] == 200 and abs(order.metrics()["spearman_length"]) < 0.15
    batches = plan.batches()
    for label in range(GROUPS):
        pure = (plan.cluster[batches] == label).all(axis=1)
        assert pure.sum() >= 14  # 120 prompts a cluster, batches of 8; left-overs are a stream of their own
        own = plan.difficulty[batches[pure]]
        assert (np.diff(own, axis=1) >= 0).all()
        assert spearman(own.mean(axis=1), np.arange(len(own))) > 0.95
    hardest = EasyToHard(labels=200, descending=True).difficulty(plan, prompts, rows)
    assert np.array_equal(hardest, -plan.difficulty)


def test_the_sample_of_labels_is_seeded_and_in_range():
    prompts, rows, *_ = world(200, labelled=0.6)
    known = {i for i, prompt in enumerate(prompts) if prompt.labels}
    plan = SamplePlan.sequential(200, 8)
    probes = [EasyToHard(probe=RIDGE, labels=n, seed=s) for n, s in ((50, 0), (50, 0), (50, 1), (None, 0), (5000, 0))]
    taught = []
    for probe in probes:
        probe.apply(plan, prompts, rows)
        taught.append(probe._prediction.rows.tolist())
    assert taught[0] == taught[1] != taught[2]
    assert set(taught[0]) < known and len(set(taught[0])) == 50
    assert set(taught[3]) == set(taught[4]) == known


def test_log_determinants_by_hand():
    assert log_determinant(np.eye(3), 1.0) == pytest.approx(3 * np.log(2))
    assert log_determinant(np.tile([[1.0, 0.0]], (3, 1)), 2.0) == pytest.approx(np.log(1 + 2 * 3))


def test_diverse_dealing_by_hand():
    # Two of each direction in order a a b b: batch 0 takes the first a, batch 1 the second; then each the other direction.
    units = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert assign_diverse(units, 2, 2, 1.0).tolist() == [[0, 2], [1, 3]]


def test_each_turn_takes_the_largest_gain_in_log_determinant():
    random = np.random.default_rng(0)
    units = random.standard_normal((12, 3))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    left, batches = list(range(12)), [[], []]
    for turn in range(12):
        mine = batches[turn % 2]
        gains = [log_determinant(units[[*mine, i]], 0.7) for i in left]
        mine.append(left.pop(int(np.argmax(np.round(gains, 6)))))  # at first all are equal: the earliest
    assert assign_diverse(units, 2, 6, 0.7).tolist() == [sorted(batch) for batch in batches]


def test_units_in_float32_are_all_equal_at_first():
    """Their lengths differ by what float32 rounds; the earliest row is taken all the same."""
    units = np.random.default_rng(1).standard_normal((40, 300)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    assert np.ptp((units.astype(np.float64) ** 2).sum(1)) > 1e-7
    assert assign_diverse(units, 1, 1, 1.0).tolist() == [[0]]


@pytest.mark.parametrize("components", [16, 1000])
def test_diverse_batches_span_more_and_stay_in_their_window(components):
    prompts, rows, group, *_ = world()
    clustered = KMeansClusters(GROUPS).apply(SamplePlan.sequential(600, 8), prompts, rows)
    diverse = DiverseBatches(window=5, components=components)
    dealt = diverse.apply(clustered, prompts, rows)
    metrics = diverse.metrics()
    assert metrics["logdet"] > metrics["logdet_before"] and 0.5 < metrics["share"] < 1
    window = 5 * 8
    for start in range(0, 600, window):
        assert set(dealt.rows[start : start + window]) == set(clustered.rows[start : start + window])
    moved = dealt.batch_of() != clustered.batch_of()
    assert np.array_equal(dealt.mixed_from[moved], clustered.batch_of()[moved])
    groups = [len(set(group[batch])) for plan in (clustered, dealt) for batch in plan.batches()]
    assert np.mean(groups[75:]) > np.mean(groups[:75]) + 1


def broken():
    prompts, rows, *_ = world(60)
    dense = rows.toarray()
    dense[[7, 9], 3] = np.nan
    return prompts, dense


@pytest.mark.parametrize("make", [csr_array, np.asarray])
@pytest.mark.parametrize(
    "operation", [QualityFilter(), KMeansClusters(3), EasyToHard(), DiverseBatches()], ids=lambda op: type(op).__name__
)
def test_nan_features_name_the_prompts(operation, make):
    prompts, rows = broken()
    name = type(operation).__name__
    with pytest.raises(InputError, match=f"{name}.*: the feature rows of 2 prompts hold NaN.*'p7', 'p9'"):
        operation.apply(SamplePlan.sequential(60, 8), prompts, make(rows))
    with pytest.raises(InputError, match="name a signal source"):
        operation.apply(SamplePlan.sequential(60, 8), prompts, None)
    with pytest.raises(InputError, match="got 59 feature rows for 60 prompts"):
        operation.apply(SamplePlan.sequential(60, 8), prompts, np.ones((59, 2)))


def labelled(values):
    return [Prompt.asking(f"p{i}", f"question {i}", "1", labels=v) for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("operation", "labels", "said"),
    [
        (EasyToHard(), [{}] * 30, "EasyToHard.label is 'difficulty', but no prompt has it; labels present: none"),
        (QualityFilter(), [{"level": 1.0}] * 30, "QualityFilter.label is 'quality'.* labels present: level"),
        (EasyToHard(), [{"difficulty": 2.0}] * 30, "EasyToHard .*'difficulty'.*: all 30 labels are 2; a probe learns"),
        (
            EasyToHard(probe=ElasticNetProbe(folds=7)),
            [{"difficulty": float(i)} if i < 5 else {} for i in range(30)],
            "'difficulty'.*: 5 labels for 7 folds; label more prompts, or write fewer folds",
        ),
        (KMeansClusters(31), [{}] * 30, "KMeansClusters.clusters is 31, but 30 prompts are planned; write fewer"),
        (PermutedClusters(KMeansClusters(2)), [{}] * 30, "PermutedClusters.label is 'difficulty', but no prompt"),
        (LabelFilter("truth"), [{}] * 30, "LabelFilter.label is 'truth', but no prompt"),
        (MatchedFilter(LengthFilter()), [{}] * 30, "MatchedFilter.label is 'difficulty', but no prompt"),
    ],
)
def test_what_cannot_be_learned_is_refused(operation, labels, said):
    rows = np.random.default_rng(0).standard_normal((30, 4))
    with pytest.raises(InputError, match=said):
        operation.apply(SamplePlan.sequential(30, 4), labelled(labels), rows)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: QualityFilter(drop=1.0), "QualityFilter.drop is 1.0; write"),
        (lambda: QualityFilter(labels=1), "QualityFilter.labels is 1; write"),
        (lambda: LengthFilter(-0.5), "LengthFilter.fraction is -0.5; write"),
        (lambda: LabelFilter(fraction=1.0), "LabelFilter.fraction is 1.0; write"),
        (lambda: MatchedFilter(LengthFilter(), bins=0), "MatchedFilter.bins is 0; write"),
        (lambda: KMeansClusters(0), "KMeansClusters.clusters is 0; write"),
        (lambda: KMeansClusters(components=0), "KMeansClusters.components is 0; write"),
        (lambda: PermutedClusters(KMeansClusters(), bins=0), "PermutedClusters.bins is 0; write"),
        (lambda: EasyToHard(labels=1), "EasyToHard.labels is 1; write"),
        (lambda: FullMixing(window=1), "FullMixing.window is 1; write"),
        (lambda: DiverseBatches(window=1), "DiverseBatches.window is 1; write"),
        (lambda: DiverseBatches(scale=0.0), "DiverseBatches.scale is 0.0; write"),
    ],
)
def test_bad_arguments_are_named(make, said):
    with pytest.raises(InputError, match=said):
        make()
