"""What a study's dashboard shows: only names that are documented and logged, and nothing that no arm can log."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saerl_lightning.evaluation.metrics import SampledAccuracy
from saerl_lightning.plan_page.charts import COLOURS, NOTHING
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.study.dashboard.panels import LoggedStudy, sections

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"
BARE = LoggedStudy("s", ["grpo", "saerl"], "grpo", 3, "val/macro/avg@k")
FULL = replace(
    BARE,
    sets={"dev": 4, "aime": 16},
    slots=["mixing", "curriculum", "clustering", "filtering"],
    kl=True,
    correction=True,
    tables=["plan/ledger"],
)


def shown(study: LoggedStudy) -> list[str]:
    return [panel.shows for section in sections(study) for panel in section.panels if panel.kind != "table"]


def documented() -> set[str]:
    """Names in the first column of the tables of docs/metrics.md."""
    cells = re.findall(r"^\| (`.*?) \| ", METRICS.read_text(), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def as_documented(name: str) -> str:
    """A logged name with the parts that vary written as in the page; `val/macro/…` is explained there in words."""
    if name.startswith("data/"):
        return name.split("/", 2)[2]
    name = re.sub(r"^val/[^/]+/", "<stage>/<set>/", name)
    return re.sub(r"pass@\d+", "pass@n", re.sub(r"avg@\d+", "avg@k", name))


def test_every_metric_is_one_that_the_metrics_page_defines():
    known = documented()
    assert len(known) > 50
    assert not {name for name in shown(FULL) if as_documented(name) not in known}
    assert len(set(shown(FULL))) == len(shown(FULL)) > 40  # nothing twice


def test_what_no_arm_logs_is_left_out():
    titles = [section.title for section in sections(BARE)]
    assert titles[0] == "The study's metric" and not {"Accuracy of each set", "The plan", "Tables"} & set(titles)
    extra = set(shown(FULL)) - set(shown(BARE))
    assert {name for name in extra if not name.startswith(("data/", "val/"))} == {
        "policy/kl",
        "time/reference",
        "policy/correction_mean",
        "policy/correction_capped_frac",
    }
    assert set(shown(replace(BARE, slots=["mixing"]))) - set(shown(BARE)) == {"data/mixing/share"}


@given(st.integers(1, 33))
def test_every_number_of_a_set_is_one_that_its_evaluation_gives(k):
    accuracy = SampledAccuracy(k)
    texts, ids = ["1"] * k, [[2]] * k
    rollouts = Rollouts.pack([[1]], ids, [[-1.0]] * k, [False] * k, texts, k, 0)
    accuracy.update([Prompt.asking("p", "?", "1")], rollouts, torch.ones(1, k))
    logged = {f"val/dev/{name}" for name in accuracy.compute()}
    of_set = {name for name in shown(replace(BARE, sets={"dev": k})) if name.startswith("val/dev")}
    assert of_set <= logged and len(of_set) == (2 if k == 1 else 3)


@pytest.mark.parametrize("baseline", [0, 1, 2])
def test_arms_have_the_colours_of_the_report(baseline):
    arms = ["a", "b", "c"]
    colours = replace(BARE, arms=arms, baseline=arms[baseline]).colours
    assert [colours[arm] for arm in arms if arm != arms[baseline]] == list(COLOURS[:2])
    assert colours[arms[baseline]] == NOTHING
