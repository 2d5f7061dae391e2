"""Beliefs and rules: numbers worked by hand, and that features predict prompts never served."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.special import expit
from scipy.stats import betabinom, spearmanr
from scipy.stats import norm as normal

from saerl_lightning.errors import InputError
from saerl_lightning.online.beliefs.belief import chance_to_vary, mean_and_sd
from saerl_lightning.online.beliefs.feature_posterior import FeaturePosterior
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.beliefs.sparse_posterior import SparsePosterior
from saerl_lightning.online.beliefs.weights import Diagonal, Gaussian
from saerl_lightning.online.rules.admit import Admit
from saerl_lightning.online.rules.easiest_first import EasiestFirst
from saerl_lightning.online.rules.highest_chance import HighestChance
from saerl_lightning.online.rules.nearest import Nearest
from saerl_lightning.online.rules.rule import Candidates
from saerl_lightning.records import Prompt
from tests.online.examples import candidates, features, pool, rng, served


@pytest.mark.parametrize(
    ("a", "b", "group", "chance"),
    [(2, 2, 2, 0.4), (20, 20, 2, 20 / 41), (1, 1, 2, 1 / 3), (1, 1, 8, 7 / 9)],
)
def test_the_chance_to_vary_is_the_tables(a, b, group, chance):
    """Rising factorials by hand, as (2)_2 / (4)_2 = 6 / 20 twice; and SciPy's beta-binomial."""
    found = chance_to_vary(np.array([float(a)]), np.array([float(b)]), group)[0]
    assert found == pytest.approx(chance)
    whole = betabinom(group, a, b)
    assert found == pytest.approx(1 - whole.pmf(0) - whole.pmf(group))


def test_mean_and_sd_are_those_of_a_beta():
    mean, sd = mean_and_sd(np.array([4.0]), np.array([6.0]))
    assert (mean[0], sd[0]) == pytest.approx((0.4, np.sqrt(24 / 1100)))


def test_counts_are_forgotten_as_mopps_does():
    """3 of 8 right, then 6 of 8, half kept: Beta(1 + 3, 1 + 5), then Beta(1 + 1.5 + 6, 1 + 2.5 + 2)."""
    belief, row = PromptBeta(keep=0.5), np.array([4])
    belief.begin(pool(), None)
    belief.learn(row, np.array([3.0]), np.array([8.0]))
    assert np.array(belief.beta(np.array([4, 5]))).T.tolist() == [[4.0, 6.0], [1.0, 1.0]]
    belief.learn(row, np.array([6.0]), np.array([8.0]))
    assert np.ravel(belief.beta(row)).tolist() == [8.5, 5.5]


ONE_GROUP = np.array([[1.0, 1.0]]), np.array([6.0]), np.array([8.0])


def test_one_group_moves_the_weights_as_worked_by_hand():
    """Mean 0, S = I, no residual; 6 of 8: logit ln 2.6, noise 1/6.5 + 1/2.5 = .5538, gain 1/2.5538 = .3916."""
    after = Gaussian(np.zeros(2), np.eye(2), 0.0, 0.0).updated(*ONE_GROUP)
    assert after.mean == pytest.approx([0.3741, 0.3741], abs=1e-4)
    assert after.covariance.ravel() == pytest.approx([0.6084, -0.3916, -0.3916, 0.6084], abs=1e-4)
    across = np.array([1.0, -1.0])
    assert across @ after.mean == pytest.approx(0)
    assert across @ after.covariance @ across == pytest.approx(2)


def test_variances_alone_are_those_of_a_filter_whose_covariances_are_dropped_after_each_group():
    """The hand-worked group has none to drop before it; several groups are compared with the full filter."""
    columns, right, graded = ONE_GROUP
    after = Diagonal(np.zeros(2), np.ones(2)).updated(csr_array(columns), right, graded)
    assert after.mean == pytest.approx([0.3741, 0.3741], abs=1e-4)
    assert after.covariance == pytest.approx([0.6084, 0.6084], abs=1e-4)
    random = np.random.default_rng(0)
    columns = random.standard_normal((6, 5)) * (random.random((6, 5)) < 0.5)
    right, graded = random.integers(0, 9, 6).astype(float), np.full(6, 8.0)
    slow = Gaussian(np.zeros(5), np.eye(5), 0.7)
    for row in range(6):
        slow = slow.updated(columns[[row]], right[[row]], graded[[row]])
        slow = Gaussian(slow.mean, np.diag(np.diag(slow.covariance)), 0.7)
    fast = Diagonal(np.zeros(5), np.ones(5), 0.7).updated(csr_array(columns), right, graded)
    assert fast.mean == pytest.approx(slow.mean, abs=1e-12)
    assert fast.covariance == pytest.approx(np.diag(slow.covariance), abs=1e-12)
    a, b = fast.beta(csr_array(columns))
    assert (a, b) == (pytest.approx(slow.beta(columns)[0]), pytest.approx(slow.beta(columns)[1]))
    assert fast.known("constant").updated(csr_array(columns), right, graded).mean[1:].tolist() == fast.mean[1:].tolist()


def test_sparse_features_predict_prompts_that_were_never_served():
    """Of 40 features, 4 a prompt, two make it easy and two hard."""
    random = np.random.default_rng(0)
    rows = np.zeros((600, 40))
    np.put_along_axis(rows, np.argsort(random.random((600, 40)), 1)[:, :4], 1.0, 1)
    truth = expit(3 * (rows[:, :2].sum(1) - rows[:, 2:4].sum(1)))
    belief = SparsePosterior(variance=4.0)
    belief.begin(pool(600), csr_array(rows))
    served(belief, truth, np.arange(400))
    predicted = mean_and_sd(*belief.beta(np.arange(400, 600)))[0]
    assert spearmanr(predicted, truth[400:]).statistic > 0.55
    assert np.abs(predicted - truth[400:]).mean() < 0.1


def test_a_constant_alone_moves_as_worked_by_hand_and_what_is_known_stays():
    """Gain 1 / 1.5538 of ln 2.6 for the constant; nothing for a weight that is known, or if all are."""
    start = Gaussian(np.zeros(2), np.eye(2), 0.0, 0.5)
    after = start.known("constant").updated(*ONE_GROUP)
    assert after.mean == pytest.approx([0.6149, 0], abs=1e-4)
    assert start.known("nothing").later().updated(*ONE_GROUP).mean.tolist() == [0, 0]
    assert start.known("all") is start


@pytest.mark.parametrize("learns", ["constant", "nothing"])
def test_a_control_keeps_the_weights_that_the_labels_taught(learns):
    rows = features(200)
    labels = 100 * (1 - expit(3 * rows[:, 0]))
    prompts = [Prompt.asking(f"p{i}", f"word {i}", labels={"difficulty": label}) for i, label in enumerate(labels)]
    belief = FeaturePosterior(components=5, label="difficulty", learns=learns)
    belief.begin(prompts, rows)
    before = belief.state_dict()["mean"]
    belief.learn(np.arange(20), np.zeros(20), np.full(20, 8.0))
    after = belief.state_dict()["mean"]
    assert (after[:, 1:] == before[:, 1:]).all() and before[:, 1:].abs().max() > 0.5
    assert (after[:, 0] < before[:, 0]).all() == (learns == "constant")
    assert belief.state_dict()["own"].sum() == 0


def test_a_posterior_that_learns_nothing_needs_a_label():
    with pytest.raises(InputError, match=r"learns is 'nothing' and label is null.* name the label"):
        FeaturePosterior(learns="nothing").check(pool(), np.arange(3))


def test_two_groups_at_once_are_one_after_the_other():
    start = Gaussian(np.zeros(3), np.diag([1.0, 2.0, 0.5]), 0.7, 0.1)
    columns, right, graded = np.array([[1.0, 2.0, 0.0], [1.0, -1.0, 3.0]]), np.array([2.0, 7.5]), np.array([8.0, 8.0])
    both = start.updated(columns, right, graded)
    second = start.updated(columns[1:], right[1:], graded[1:]).updated(columns[:1], right[:1], graded[:1])
    assert both.mean == pytest.approx(second.mean, abs=1e-12)
    assert both.covariance.ravel() == pytest.approx(second.covariance.ravel(), abs=1e-12)


def test_a_normal_logit_becomes_the_beta_of_equal_mean_and_variance():
    """Of N(0, 1): Beta(2.3816, 2.3816); of N(1, 2) by a million draws of quantiles."""
    a, b = Gaussian(np.zeros(1), np.zeros((1, 1)), 1.0, 0.0).beta(np.ones((1, 1)))
    assert (a[0], b[0]) == pytest.approx((2.3816, 2.3816), abs=1e-3)
    a, b = Gaussian(np.array([1.0]), np.eye(1), 1.0, 0.0).beta(np.ones((1, 1)))
    drawn = expit(normal(1, np.sqrt(2)).ppf((np.arange(1_000_000) + 0.5) / 1_000_000))
    mean, sd = mean_and_sd(a, b)
    assert (mean[0], sd[0]) == pytest.approx((drawn.mean(), drawn.std()), abs=1e-4)


def test_only_the_constants_variance_grows_between_steps():
    later = Gaussian(np.zeros(2), np.eye(2), 1.0, 0.25).later()
    assert later.covariance.tolist() == [[1.25, 0.0], [0.0, 1.0]]


def test_features_predict_prompts_that_were_never_served_and_counts_alone_do_not():
    rows = features(400)
    truth = expit(3 * rows[:, 0] / np.linalg.norm(rows, axis=1))
    first, rest = np.arange(200), np.arange(200, 400)
    posterior, counts = FeaturePosterior(components=5), PromptBeta()
    for belief in (posterior, counts):
        belief.begin(pool(400), rows)
        served(belief, truth, first)
    predicted, spread = mean_and_sd(*posterior.beta(rest))
    assert spearmanr(predicted, truth[rest]).statistic > 0.9
    assert np.abs(predicted - truth[rest]).mean() < 0.1
    assert np.ptp(mean_and_sd(*counts.beta(rest))[0]) == 0
    assert spread.max() < 0.29  # that of a uniform Beta


def test_labels_teach_before_training():
    rows = np.stack([np.arange(40) % 2 * 2.0 - 1, np.ones(40)], 1)
    belief = FeaturePosterior(components=2, label="difficulty")
    belief.begin(pool(40), rows)
    rate = mean_and_sd(*belief.beta(np.arange(2)))[0]
    assert rate[0] > 0.7 > 0.3 > rate[1]
    with pytest.raises(InputError, match=r"FeaturePosterior\.label is 'quality', but no prompt has it"):
        FeaturePosterior(label="quality").check(pool(), np.arange(3))


def test_a_policy_that_gets_better_is_followed_by_the_drift():
    belief, rows = FeaturePosterior(components=2), features(400)[:, :3]
    belief.begin(pool(400), rows)
    served(belief, np.full(400, 0.1), np.arange(200))
    before = mean_and_sd(*belief.beta(np.arange(390, 400)))[0].mean()
    served(belief, np.full(400, 0.9), np.arange(200, 380))
    after = mean_and_sd(*belief.beta(np.arange(390, 400)))[0].mean()
    assert before < 0.25 < 0.6 < after
    assert belief.metrics()["drift"] > 0


def test_the_nearest_batch_comes_first_and_the_rest_keeps_its_order():
    """PCL's example: of .1, .45, .7, .52 the fourth is .02 from one half, the second .05."""
    made = Nearest(0.5, thompson=False).arrange(candidates([0.1, 0.45, 0.7, 0.52]), rng())
    assert made.order.tolist() == [3, 1, 0, 2]


def test_thompson_draws_serve_what_is_little_known_and_means_do_not():
    """Beta(600, 400) lies within a hundredth of .6; Beta(2, 8) is nearer to one half now and then."""
    left = candidates([0.2, 0.6], batch_size=1)
    unsure = Candidates(
        left.rows, np.array([2.0, 600.0]), np.array([8.0, 400.0]), left.varies, left.seen, left.cluster, 1
    )
    random = np.random.default_rng(0)
    first = [Nearest(0.5, thompson=True).arrange(unsure, random).order[0] for _ in range(400)]
    share = float(np.mean(np.array(first) == 0))
    # P(|Beta(2, 8) - .5| < .1), since the other is .6 to a hundredth: I(.6) - I(.4) = .0668 by the regularised beta.
    assert share == pytest.approx(0.0668, abs=0.04)
    assert Nearest(0.5, thompson=False).arrange(unsure, random).order[0] == 1


def test_the_highest_chance_to_vary_is_served_first():
    made = HighestChance().arrange(candidates([0.05, 0.5, 0.9, 0.4]), rng())
    assert made.order.tolist() == [1, 3, 0, 2]


def test_prompts_whose_groups_would_hardly_vary_wait():
    made = Admit(0.6).arrange(candidates([0.01, 0.5, 0.99, 0.4], size=50.0), rng())
    assert made.order.tolist() == [1, 3, 0, 2]
    assert (made.waits.tolist(), made.reason) == ([True, False, True, False], "chance to vary below 0.6")


def test_clusters_get_harder_together():
    """Two clusters of four, batches of two: each starts with its easiest two."""
    made = EasiestFirst().arrange(
        candidates([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6], cluster=[0, 0, 0, 0, 1, 1, 1, 1]), rng()
    )
    assert made.order.tolist() == [1, 3, 5, 7, 2, 0, 6, 4]
