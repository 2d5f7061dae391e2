"""Drift: the old probe on features that moved, the noise of labels, sections, and what is not done twice."""

import json
from types import SimpleNamespace

import drift
import numpy as np
import pytest
import torch
from drift_form import markdown, score
from drift_probe import FoldFits
from drift_run import HALVES, Measured
from drift_signals import explained_variance, token_sums
from drift_tables import FRESH, OLD_PROBE, OLD_ROWS, Step, corrected, difference, sections, whole

from saerl_lightning.data import scores
from saerl_lightning.data.probe_fits import Fit, out_of_fold
from saerl_lightning.data.probes import ELASTIC_NET, Probe
from saerl_lightning.data.scores import Interval, spearman
from saerl_lightning.errors import InputError
from saerl_lightning.prompts.labels import PassRate
from saerl_lightning.sae.metrics import Reconstruction
from saerl_lightning.signals.source import SignalSource
from saerl_lightning.study.report.gather import read_sections
from tests.benchmarks.drift_prompts import prompts_of

N = 120
RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(N, 4))
DIFFICULTY = 50 + 10 * ROWS[:, 0] + RANDOM.normal(size=N)


class Rows(SignalSource):
    """Feature rows that are known."""

    def __init__(self, name: str, rows: np.ndarray) -> None:
        self.name, self.rows = name, rows

    def features(self, prompts):
        return self.rows

    def fingerprint(self, prompts):
        return self.name


PROMPTS = prompts_of([f"{'word ' * (1 + i % 7)}{i}" for i in range(N)])


def turned(rows: np.ndarray) -> np.ndarray:
    """The first two columns turned by a right angle: what the first said, the second says now."""
    return rows @ np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def labels_at(folder, difficulty) -> list:
    """Both halves' files, four answers each, the second half a little harder."""
    files = []
    for half, name in enumerate(HALVES):
        files.append(folder / f"{name}.jsonl")
        records = [
            PassRate(p.uid, 4 * (1 - (d + half) / 100), 4).record() for p, d in zip(PROMPTS, difficulty, strict=True)
        ]
        files[-1].write_text("".join(json.dumps(each) + "\n" for each in records))
    return files


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Intervals that are rougher, and five times as fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "DRAWS", scores.FEWEST_DRAWS)
        yield


def ask(folder) -> list[Step]:
    """Asks step 0 and a step whose features have turned, or goes on with what is in the folder."""
    starts, steps = {}, []
    for step, rows in ((0, ROWS), (7, turned(ROWS))):
        place = folder / f"step-{step}"
        place.mkdir(exist_ok=True)
        moment = drift.Moment(step, "policy", labels_at(place, DIFFICULTY), place)
        known = {"SAE": Rows(f"rows {step}", rows), "length": Rows("length", ROWS[:, 1:])}
        signals = SimpleNamespace(by_name=known, cached=[], sums=Rows("sums", token_sums_of(rows)))
        steps.append(drift.ask(moment, signals, starts, PROMPTS))
    return steps


@pytest.fixture(scope="module")
def asked(tmp_path_factory, few_draws):
    """The steps, and the folder that they were found in."""
    folder = tmp_path_factory.mktemp("asked")
    return SimpleNamespace(folder=folder, steps=ask(folder))


def token_sums_of(rows: np.ndarray) -> np.ndarray:
    halves = SimpleNamespace(device="cpu", encode=lambda x: x, decode=lambda codes: codes / 2)
    return token_sums(halves, torch.from_numpy(rows))


# -- the old probe ----------------------------------------------------------------------------------------------------


def test_the_old_probe_fails_where_features_turned_and_a_new_one_does_not(asked):
    start, later = asked.steps
    at = {task: score(later.found["SAE"][task]).value for task in (FRESH, OLD_ROWS, OLD_PROBE)}
    assert at[FRESH] > 0.95 and at[OLD_ROWS] > 0.95
    assert abs(at[OLD_PROBE]) < 0.35  # it reads a column that says nothing now
    assert (
        difference(later, "SAE", OLD_PROBE, FRESH).high < 0 and difference(later, "SAE", OLD_PROBE, OLD_ROWS).high < 0
    )
    kept = later.found["length"]  # features that no weights make: the old probe sees what it saw
    assert np.array_equal(kept[OLD_PROBE].predictions, kept[OLD_ROWS].predictions)
    same = start.found["SAE"]
    assert np.array_equal(same[OLD_PROBE].predictions, same[FRESH].predictions)


class Remembers(Probe):
    """Predicts nothing, and fails if it is shown a row that it learned from."""

    folds, seed = 5, 0

    def fit(self, features, labels):
        learned = set(features[:, 0])

        class Refuses(Fit):
            nonzero = 0

            def predict(self, features):
                assert learned.isdisjoint(features[:, 0])
                return np.zeros(len(features))

        return Refuses()


def test_no_prompt_is_predicted_by_a_fit_that_saw_it_and_the_folds_are_those_of_the_package():
    FoldFits.of(Remembers(), ROWS, DIFFICULTY).predict(ROWS)
    with pytest.raises(AssertionError):
        Remembers().fit(ROWS, DIFFICULTY).predict(ROWS[:1])
    ours = FoldFits.of(ELASTIC_NET, ROWS, DIFFICULTY).predict(ROWS)
    assert np.array_equal(ours, out_of_fold(ELASTIC_NET.fit, ROWS, DIFFICULTY, 5, 0))


def test_what_was_found_is_not_computed_again(asked, monkeypatch):
    monkeypatch.setattr(drift.Difficulty, "measure", None)  # a call of None fails
    monkeypatch.setattr(drift.OldProbe, "measure", None)
    monkeypatch.setattr(drift.Topics, "measure", None)
    again = ask(asked.folder)
    for before, after in zip(asked.steps, again, strict=True):
        assert [f.numbers for f in before.found["SAE"].values()] == [f.numbers for f in after.found["SAE"].values()]


# -- the sections -----------------------------------------------------------------------------------------------------


def test_sections_are_read_by_the_report_and_say_what_was_found(asked, tmp_path):
    steps = asked.steps
    made = sections(steps, "A run.")
    (tmp_path / "drift").mkdir()
    for name, each in made.items():
        each.write(tmp_path / "drift" / f"{name}.json")
    panels = read_sections(tmp_path)
    assert [len(panel.rows) for panel in panels] == [2, 4, 4]
    assert all(len(row) == len(panel.columns) for panel in panels for row in panel.rows)
    lines = {trace["name"]: trace["y"] for trace in panels[1].figure["data"]}
    assert set(lines) == {"SAE", "length", "SAE, probe of step 0"}
    assert lines["SAE, probe of step 0"][1] == score(steps[1].found["SAE"][OLD_PROBE]).value
    assert "That is less than what it has on those of step 0" in panels[2].text
    assert markdown(made).count("\n| 7 |") == 5


def test_reliability_by_hand():
    assert whole(0.5) == pytest.approx(2 / 3) and whole(1.0) == 1.0 and whole(-0.2) == 0.0
    clean = Measured(DIFFICULTY, DIFFICULTY, DIFFICULTY)
    other = Measured(ROWS[:, 1], ROWS[:, 1], ROWS[:, 1])
    assert corrected(clean, clean) == Interval(pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert corrected(clean, other).value == pytest.approx(spearman(DIFFICULTY, ROWS[:, 1]))  # no noise, no correction
    noise = np.random.default_rng(1).normal(0, 15, size=(4, N))
    noisy = [Measured(DIFFICULTY + a, DIFFICULTY + b, DIFFICULTY + (a + b) / 2) for a, b in (noise[:2], noise[2:])]
    raw = spearman(noisy[0].difficulty, noisy[1].difficulty)
    assert raw < 0.65 and corrected(*noisy).low < 1 < corrected(*noisy).high  # one difficulty, measured badly twice


def test_variance_explained_is_that_of_the_sae_training():
    x = torch.from_numpy(ROWS)
    known = Reconstruction(4)
    known.update(x, x / 2, torch.tensor(0))
    found = explained_variance(token_sums_of(ROWS))
    assert found.value == pytest.approx(float(known.compute()["explained_variance"]), rel=1e-6)
    assert found.low < found.value < found.high


def test_an_odd_number_of_answers_is_refused(tmp_path):
    with pytest.raises(InputError, match="even"):
        drift.drift(SimpleNamespace(samples=3))
