"""The hidden Markov model and attention over references: numbers worked by hand, and a slow computation beside."""

import numpy as np
import pytest

from saerl_lightning.online.beliefs.hidden_markov import HiddenMarkov
from saerl_lightning.online.beliefs.reference_attention import ReferenceAttention, attended
from tests.online.examples import believed, features, learn_one, pool


def one_prompt(prior: np.ndarray, keep: float, groups: list[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """DPS for one prompt by loops: chances of the states, transitions. None is a step without the prompt."""
    counts, latest, ahead = prior.copy(), np.full(3, 1 / 3), np.full(3, 1 / 3)
    for rate in groups:
        now, gained = ahead.copy(), np.zeros((3, 3))
        if rate is not None:
            now = np.eye(3)[0 if rate == 0 else 2 if rate == 1 else 1]
            for to in range(3):
                for source in range(3):
                    gained[to, source] = now[to] * latest[source] * counts[to, source] / counts[:, source].sum()
            gained /= gained.sum()
        counts = keep * counts + (1 - keep) * prior + gained
        ahead = np.array([sum(counts[to, s] / counts[:, s].sum() * now[s] for s in range(3)) for to in range(3)])
        latest = now
    return ahead, counts


def test_a_group_that_varies_moves_the_chances_as_worked_by_hand():
    """Equal chances, lambda .7: the row "part" counts 1 + 1/3, so from "part" on the chances are (1, 4/3, 1) / (10/3)."""
    belief = HiddenMarkov(keep=0.7)
    belief.begin(pool(), None)
    assert belief.believe(np.array([4]), 8)[2] == pytest.approx([1 / 3])
    learn_one(belief, 4, 3.0)
    state = belief.state_dict()
    assert state["next"][4].tolist() == pytest.approx([0.3, 0.4, 0.3])
    assert state["transitions"][4].ravel().tolist() == pytest.approx([1, 1, 1, *[4 / 3] * 3, 1, 1, 1])
    assert belief.believe(np.array([4, 5]), 8)[2] == pytest.approx([0.4, 1 / 3])


def test_a_step_moves_the_pool_as_one_prompt_after_another_would():
    """Three prompts with histories of their own, among others that are never served."""
    belief = HiddenMarkov(prior=0.5, keep=0.7)
    belief.begin(pool(), None)
    histories = {2: [0.0, 0.0, 0.5, None, 1.0], 7: [None, 1.0, 1.0, None, 1.0], 9: [0.25, None, None, None, 0.0]}
    for step in range(5):
        rows = [row for row, history in histories.items() if history[step] is not None]
        right = np.array([8 * histories[row][step] for row in rows])
        belief.learn(np.array(rows, dtype=int), right, np.full(len(rows), 8.0))
    state = belief.state_dict()
    for row, history in {**histories, 3: [None] * 5}.items():
        ahead, counts = one_prompt(np.full((3, 3), 0.5), 0.7, history)
        assert state["next"][row].tolist() == pytest.approx(ahead.tolist())
        assert state["transitions"][row].numpy() == pytest.approx(counts)


def test_three_states_become_the_beta_of_equal_mean_and_variance():
    """Equal chances: mean 1/2, second moment 1/3 + 1/9, variance 7/36, so a + b = (1/4) / (7/36) - 1 = 2/7. Of "part" alone
    it is Beta(1, 1).
    """
    belief = HiddenMarkov()
    belief.begin(pool(), None)
    assert believed(belief, 0)[0] == pytest.approx([1 / 7, 1 / 7])
    state = belief.state_dict()
    state["next"][0] = state["next"].new_tensor([0, 1, 0])
    belief.load_state_dict(state)
    assert believed(belief, 0)[0] == pytest.approx([1.0, 1.0])


def test_attention_is_the_tables():
    """D = 4, query (2 ln 3, 0, 0, 0), references e1, e2 with rates 1, 0: scores ln 3 and 0, weights 3/4 and 1/4; with scale 2
    the logit ln 3 is halved: sqrt 3 / (1 + sqrt 3).
    """
    query, references = np.array([[2 * np.log(3), 0, 0, 0]]), np.eye(4)[:2]
    scores, rates = query @ references.T / np.sqrt(4), np.array([1.0, 0.0])
    assert attended(scores, rates) == pytest.approx([0.75])
    assert attended(scores, rates, scale=2.0) == pytest.approx([0.6340], abs=5e-5)
    assert attended(scores, rates, bias=np.log(2)) == pytest.approx([6 / 7])


def test_a_prompt_is_believed_to_be_as_the_similar_ones_served_last():
    """Rows e1, e2 and one between, nearer to e1: cosines 2/sqrt 5 and 1/sqrt 5 over .5, rates .75 and .25."""
    rows = np.array([[1.0, 0], [0, 1], [2, 1], [5, 5]])
    belief = ReferenceAttention(temperature=0.5, answers=10.0)
    belief.begin(pool(4), rows)
    assert believed(belief, 2) == [[1.0, 1.0]]
    belief.learn(np.array([0, 1]), np.array([6.0, 2.0]), np.array([8.0, 8.0]))
    weight = 1 / (1 + np.exp(-2 / np.sqrt(5)))
    mean = 0.75 * weight + 0.25 * (1 - weight)
    assert believed(belief, 2)[0] == pytest.approx([10 * mean, 10 * (1 - mean)])
    assert believed(belief, 3)[0] == pytest.approx([5.0, 5.0])


def test_the_latest_groups_are_the_references_one_a_prompt():
    belief = ReferenceAttention(references=3)
    belief.begin(pool(), features())
    for row, right in ((1, 8.0), (2, 4.0), (1, 2.0), (3, 0.0), (4, 8.0)):
        learn_one(belief, row, right)
    state = belief.state_dict()
    assert (state["rows"].tolist(), state["rates"].tolist()) == ([1, 3, 4], [0.25, 0.0, 1.0])
