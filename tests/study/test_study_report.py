"""The study's report: numbers checked by hand, honest words without an effect or an end, a page that asks nobody."""

import csv
import html
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from saerl_lightning.data.scores import Interval
from saerl_lightning.plan_page import frame
from saerl_lightning.study.questions import measured_sets
from saerl_lightning.study.report.facts import ArmFact, Effect, RunFact, StudyFacts
from saerl_lightning.study.report.findings import answer, signed, status
from saerl_lightning.study.report.gather import read_sections, write_report
from tests.study.synthetic_study import Arm, small_plan, write_study

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = '<img src="x" onerror="document.title=1">'
BREAKOUT = '</script><script>document.title="broken"</script>| [x](http://elsewhere.invalid)'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Plateaus from step 20 on; the smoothed curve (3 evaluations) is at .30 + its seed's shift from step 40 on.
PLAIN = [0.10, 0.20, 0.30, 0.30, 0.30, 0.30, 0.30]
SHIFTS = (0.02, 0.0, -0.02)  # of the seeds
GRPO = [[value + shift for value in PLAIN] for shift in SHIFTS]
GAINS = (0.054, 0.05, 0.046)  # mean .05, standard error .004 / sqrt 3
BETTER = [[curve[0], *(value + gain for value in curve[1:])] for curve, gain in zip(GRPO, GAINS, strict=True)]
SAME = [[value + d for value in curve] for curve, d in zip(GRPO, (0.01, -0.01, 0.0), strict=True)]  # mean shift 0


def three_arms(root: Path) -> Path:
    """A better arm that used a stage and has a plan, and one that is no different."""
    scores = {
        "curriculum/probe/spearman": 0.5, "curriculum/probe/spearman_low": 0.4, "curriculum/probe/spearman_high": 0.6,
        "curriculum/probe/labels": 512.0,
    }  # fmt: skip
    saerl = Arm(BETTER, "all four operations", ["--data.signals.sae", "{shared}/sae"], scores, small_plan())
    arms = {"grpo": Arm(GRPO, "no operation"), "saerl": saerl, "random": Arm(SAME, "random clusters")}
    stage = {"name": "sae", "makes": "sae", "run": ["main.py fit"]}
    return write_study(root / "tiny", arms, ["saerl", "random"], stages={"sae": 100.0}, made=[stage])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_known_numbers_give_the_golden_report(tmp_path):
    folder = three_arms(tmp_path)
    page_path = write_report(folder)
    assert page_path == folder / "report" / "report.html"
    assert (folder / "report" / "report.md").read_text() == (GOLDEN / "study.md").read_text()


def test_slots_that_did_nothing_are_said_once_an_arm(tmp_path):
    folder = three_arms(tmp_path)
    logs = {
        "saerl/seed-0": "1\nwarning: data.mixing: TailMixing is on, but does nothing: no prompt moves (3 of 4 prompts)\n",
        "saerl/seed-1": "warning: data.mixing: TailMixing is on, but does nothing: no prompt moves (2 of 4 prompts)\n",
        "saerl/seed-2": "all is well\nwarning: other.library: never mind\n",
        "random/seed-0": "warning: this run ends after 3 of the plan's 10 batches (30%), and serves the lowest <b>\n",
    }
    for name, text in logs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "log.txt").write_text(text)
    page = html.unescape(write_report(folder).read_text())
    mixing = "saerl, 2 of 3 runs: data.mixing: TailMixing is on, but does nothing: no prompt moves (3 of 4 prompts)"
    assert page.count(f"<li>{mixing}</li>") == 1 and "never mind" not in page
    assert "random, 1 of 1 runs: this run ends after 3 of the plan's 10 batches" in page
    assert f"- {mixing}" in (folder / "report/report.md").read_text()


def test_the_effects_are_those_worked_by_hand(tmp_path):
    """At 2 degrees of freedom t(.975) is 4.30265 and a two-sided p is 1 - t / sqrt(2 + t²).

    End: .054, .05, .046, so .05 ± 4.30265 · .004 / sqrt 3. The target is half of grpo's way from .10 to .30; steps to it:
    20, 20, 20 against 20, 20, 30. The family is 2 measures of 2 arms, so what stands alone must pass 5 % / 4: t(1 - .05 / 8)
    at 2 degrees of freedom is 8.86, at 5 (twice the seeds) 3.81; t(.80) is 1.06 and 0.92. Of 8 sign patterns 2
    are as far out as ours.
    """
    folder = three_arms(tmp_path)
    write_report(folder)
    found = {(row["measure"], row["arm"]): row for row in rows(folder / "report" / "effects.csv")}

    def numbers(measure: str, *names: str) -> list[float]:
        return [float(found[measure, "saerl"][name]) for name in names]

    t = 0.05 / (0.004 / 3**0.5)
    p = 1 - t / (2 + t * t) ** 0.5
    half = 4.302653 * 0.004 / 3**0.5
    end = numbers("end", "difference", "low", "high", "p", "p_holm")
    assert end == pytest.approx([0.05, 0.05 - half, 0.05 + half, p, 4 * p], rel=1e-5)
    steps = numbers("steps", "arm_value", "other_value", "difference", "low", "p", "p_holm")
    p = 1 - 1 / 3**0.5
    half = 4.302653 * 10 / 3
    assert steps == pytest.approx([20, 70 / 3, -10 / 3, -10 / 3 - half, p, 1.0], rel=1e-5)
    error = 0.004 / 3**0.5
    assert numbers("end", "detectable", "p_flips") == pytest.approx([(8.8602 + 1.0607) * error, 2 / 8], rel=1e-4)
    assert numbers("end", "detectable_doubled") == pytest.approx([(3.8100 + 0.9195) * error / 2**0.5], rel=1e-3)
    # The shared stage's 100 s count: 20 steps of 3.5 s are 170 s.
    assert numbers("wall", "arm_value", "other_value") == pytest.approx([170, (70 + 70 + 105) / 3])


def test_contrasts_are_the_primary_family_and_the_rest_is_held_against_the_baseline(tmp_path):
    """The pair differs by .044, .06, .046: mean .05, deviations -6, 10 and -4 thousandths, error sqrt(76e-6 / 3).

    The family is 2 measures of 1 pair: the end's p counts twice. Steps: 20, 20, 20 against 20, 30, 30.
    """
    curves = {"grpo": Arm(GRPO), "saerl": Arm(BETTER), "random": Arm(SAME)}
    folder = write_study(tmp_path / "tiny", curves, [], more={"contrasts": [["saerl", "random"]]})
    said = write_report(folder).with_suffix(".md").read_text()
    found = {(row["measure"], row["arm"], row["other"]): row for row in rows(folder / "report" / "effects.csv")}
    assert [key[1:] for key in found if key[0] == "end"] == [("saerl", "random"), ("saerl", "grpo"), ("random", "grpo")]
    error = (76e-6 / 3) ** 0.5
    t = 0.05 / error
    p = 1 - t / (2 + t * t) ** 0.5
    end = found["end", "saerl", "random"]
    names = ("arm_value", "other_value", "difference", "low", "p", "p_holm")
    assert [float(end[name]) for name in names] == pytest.approx(
        [0.35, 0.3, 0.05, 0.05 - 4.302653 * error, p, 2 * p], rel=1e-5
    )
    assert float(found["steps", "saerl", "random"]["difference"]) == pytest.approx(-20 / 3)
    assert {row["p_holm"] for key, row in found.items() if key[2] == "grpo"} == {""}
    assert said.splitlines()[2].startswith(
        "After 60 steps, saerl ends 0.050 above random on val/macro/avg@k (0.350 against 0.300"
    )
    assert "- primary family: saerl − random" in said and "## Against each other and grpo: end" in said
    assert "\n| saerl − random | 3 | 0.350 | 0.300 | +0.050 |" in said and "to the target of 1 pair." in said


def test_tokens_for_each_group_with_variance_stand_beside_tokens_to_the_target(tmp_path):
    """A step has 200 tokens: 2, 4, 5 groups cost 100, 50, 40, and 4, 5, 8 cost 50, 40, 25. The records do not have them.

    Differences are -50, -10, -15: -25 with the error sqrt(475 / 3). grpo's own: 190 / 3, deviations 110, -40, -70 thirds.
    """
    arms = {"grpo": Arm(GRPO, varied=(2, 4, 5)), "saerl": Arm(BETTER, varied=(4, 5, 8)), "other": Arm(SAME)}
    folder = write_study(tmp_path / "tiny", arms, ["saerl"])
    said = write_report(folder).with_suffix(".md").read_text()
    found = {(row["measure"], row["arm"]): row for row in rows(folder / "report" / "effects.csv")}
    values = [
        float(found["group", "saerl"][name]) for name in ("arm_value", "other_value", "difference", "low", "high")
    ]
    half = 4.302653 * (475 / 3) ** 0.5
    assert values == pytest.approx([115 / 3, 190 / 3, -25, -25 - half, -25 + half], rel=1e-6)
    assert ("group", "other") not in found and found["group", "saerl"]["p_holm"] == ""
    costs = {row["arm"]: row for row in rows(folder / "report" / "costs.csv")}
    half = 4.302653 * ((110**2 + 40**2 + 70**2) / 9 / 2 / 3) ** 0.5
    own = [float(costs["grpo"][name]) for name in ("tokens_per_effective", "low", "high")]
    assert own == pytest.approx([190 / 3, 190 / 3 - half, 190 / 3 + half], rel=1e-6)
    runs = {(row["arm"], row["seed"]): row for row in rows(folder / "report" / "runs.csv")}
    assert [runs["saerl", "2"][name] for name in ("effective_groups", "tokens_per_effective")] == ["480.0", "25.0"]
    assert [runs["other", "0"][name] for name in ("effective_groups", "tokens_per_effective")] == ["", ""]
    assert "| saerl | 3 | 38.3 | 63.3 | -25 | -79.1 to +29.1 |" in said and "\n| grpo | 3 | 120 | 75 |" in said
    assert "- Tokens for each group with variance are those of all completions" in said


def test_a_run_without_a_group_with_variance_has_no_cost_of_one(tmp_path):
    folder = write_study(
        tmp_path / "tiny", {"grpo": Arm(GRPO, varied=(2, 0, 5)), "saerl": Arm(BETTER, varied=(4, 5, 8))}, ["saerl"]
    )
    write_report(folder)
    assert "group" not in {row["measure"] for row in rows(folder / "report" / "effects.csv")}
    costs = {row["arm"]: row["tokens_per_effective"] for row in rows(folder / "report" / "costs.csv")}
    assert costs["grpo"] == "" and float(costs["saerl"]) == pytest.approx(115 / 3)


def test_a_null_study_says_so(tmp_path):
    folder = write_study(tmp_path / "tiny", {"grpo": Arm(GRPO), "random": Arm(SAME)}, ["random"])
    write_report(folder)
    said = (folder / "report" / "report.md").read_text()
    assert "After 60 steps, random cannot be told from grpo on val/macro/avg@k: the difference is 0 (" in said
    assert "Whether it reaches the target of 0.200, half of grpo's mean gain, sooner or later cannot be told" in said
    assert "★" not in said


def test_a_target_that_no_run_reaches_is_said(tmp_path):
    """A leap at the very end was not seen to last; equal pairs have no interval and no p."""
    leap = [*[0.1] * 6, 0.22]
    folder = write_study(tmp_path / "tiny", {"grpo": Arm([leap] * 2), "same": Arm([leap] * 2)}, ["same"])
    write_report(folder)
    said = (folder / "report" / "report.md").read_text()
    assert "No run has reached the target of 0.160, half of grpo's mean gain, for good" in said
    assert "| same | 2 | 0.220 | 0.220 | 0 | – | – | 1.000 | – | no test |" in said


def test_a_budget_of_tokens_measures_curves_along_tokens(tmp_path):
    """Both gain .04 every 4,000 tokens, one in 20 steps and one in 10: equal areas, though unequal over 30 steps."""
    slow, fast = ([0.1 + gain * k for k in range(points)] for gain, points in ((0.02, 7), (0.04, 4)))
    arms = {"grpo": Arm([slow] * 2), "double": Arm([fast] * 2, tokens=200.0)}
    folder = write_study(tmp_path / "tiny", arms, ["double"], budget={"generated_tokens": 12_000})
    said = write_report(folder).with_suffix(".md").read_text()
    found = {row["measure"]: row for row in rows(folder / "report" / "effects.csv")}
    assert [float(found["area"][name]) for name in ("arm_value", "other_value")] == pytest.approx([0.16, 0.16])
    # Half of the slow arm's gain is .16, which its mean of three comes to in 40 steps; the fast one's does at its very end.
    assert [found["tokens"][name] for name in ("other_value", "arm_censored")] == ["8000.0", "2"]
    assert "Holm's correction is over the end and the sampled tokens to the target of 1 arm." in said


def test_a_failed_run_and_one_that_has_not_begun_are_marked(tmp_path):
    arms = {"grpo": Arm(GRPO), "saerl": Arm([BETTER[0], None, BETTER[2][:3]], failed={2: f"out of memory {BREAKOUT}"})}
    folder = write_study(tmp_path / "tiny", arms, ["saerl"])
    text = write_report(folder).read_text()
    shown = html.unescape(text.partition('<script type="application/json"')[0])
    assert "UNFINISHED: 4 of 6 runs have finished (1 failed, 1 not started)." in shown
    assert f'✗ failed</td><td class="long">out of memory {BREAKOUT}' in shown
    assert "✗ not started" in shown
    kept = {(row["arm"], row["seed"]): row for row in rows(folder / "report" / "runs.csv")}
    assert len(kept) == 6
    assert (kept["saerl", "2"]["state"], kept["saerl", "2"]["steps"], kept["saerl", "2"]["end"]) == ("failed", "20", "")
    assert {(row["arm"], row["seeds"]) for row in rows(folder / "report" / "effects.csv")} == {("saerl", "1")}


def test_a_study_in_which_nothing_has_run_says_so(tmp_path):
    folder = write_study(tmp_path / "tiny", {"grpo": Arm([[0.1, 0.2], None]), "saerl": Arm([None, None])}, ["saerl"])
    write_report(folder)
    said = (folder / "report" / "report.md").read_text()
    assert "UNFINISHED: 1 of 4 runs have finished (3 not started)" in said
    assert "Nothing can be said yet: no arm can be held against grpo, as no seed has finished in both." in said


def test_the_report_escapes_names_and_loads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "saerl_lightning.errors.NAME", re.compile(".*", re.DOTALL)
    )  # refused at the door; the page is safe too
    arms = {"grpo": Arm(GRPO, BREAKOUT), HOSTILE: Arm(BETTER, BREAKOUT, [BREAKOUT], plan=small_plan())}
    folder = write_study(tmp_path / "tiny", arms, [HOSTILE])
    text = write_report(folder).read_text()
    own = text.replace(frame.plotly_script(), "")
    assert own.count("</script>") == 3 and "<img" not in own and "default-src 'none'" in own
    data = re.search(r'id="data">(.*?)</script>', own, re.DOTALL)
    assert data
    figures = json.loads(data[1])["figures"]
    named = {trace.get("name") for figure in figures.values() for trace in figure["data"]}
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in named and HOSTILE not in named  # plotly reads tags
    assert not re.search(r'(src|href|url)\s*[=(]\s*["\']?(https?:)?//', own)
    assert "@import" not in own and "<link" not in own and "fetch(" not in own
    said = (folder / "report" / "report.md").read_text()
    assert "<img" not in said and "<script" not in said and "\\[x](http" in said


def test_sections_made_elsewhere_are_shown(tmp_path):
    folder = three_arms(tmp_path)
    (folder / "causal").mkdir()
    section = {
        "title": "Zeroing", "text": "tau <b>\n\nHow: by 0.", "columns": ["k", "tau"], "rows": [[1, 0.5]],
        "figure": {"data": [{"x": [1], "y": [0.5]}], "layout": {}},
    }  # fmt: skip
    (folder / "causal" / "zeroing.json").write_text(json.dumps(section))
    text = write_report(folder).read_text()
    assert (
        '<h2>Zeroing</h2>\n<p>tau &lt;b&gt;</p>\n<p class="note">How: by 0.</p>' in text
        and 'data-figure="section0"' in text
    )
    assert "## Zeroing\n\ntau &lt;b>\n\nHow: by 0.\n\n| k |" in (folder / "report" / "report.md").read_text()
    (folder / "causal" / "other.json").write_text("{}")
    assert [each.title for each in read_sections(folder)] == ["causal/other.json", "Zeroing"]
    assert "no section of a report" in read_sections(folder)[0].text


@pytest.mark.parametrize(
    ("metric", "sets"),
    [
        ("val/macro/avg@k", ["gsm8k", "math"]),
        ("test/macro/avg@k", ["test/math"]),
        ("val/math/avg@8", ["math"]),
        ("test/math/avg@8", ["test/math"]),
        ("val/macro/maj@k", []),
        ("reward/mean", []),
    ],
)
def test_intervals_are_over_the_questions_that_the_metric_is_of(metric, sets):
    assert measured_sets(metric, ["gsm8k", "math", "test/math"]) == sets


# -- words -------------------------------------------------------------------------------------------------------------


def facts_of(effects: list[Effect], primary: list[str], states: str = "ff") -> StudyFacts:
    words = {"f": "finished", "x": "failed", "r": "running", "s": "stopped", "w": "waiting"}
    runs = [RunFact("grpo", seed, words[letter]) for seed, letter in enumerate(states)]  # pyright: ignore[reportArgumentType]
    arms = [ArmFact("grpo"), *map(ArmFact, primary)]
    family = [(arm, "grpo") for arm in primary]
    return StudyFacts("s", "d", "", "acc", "60 steps", "grpo", family, arms, runs, target=0.3, effects=effects)


def effect(arm: str, value: float, p_holm: float, measure: str = "end") -> Effect:
    around = Interval(value, value - 0.01, value + 0.01)
    return Effect(measure, arm, "grpo", 0.3 + value, 0.3, around, 5, p_holm / 2, p_holm, True)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("effects", "said"),
    [
        (
            [effect("a", 0.05, 0.01)],
            "After 60 steps, a ends 0.050 above grpo on acc (0.350 against 0.300; 95 % interval",
        ),
        ([effect("a", -0.05, 0.01)], "After 60 steps, a ends 0.050 below grpo on acc"),
        ([effect("a", 0.05, 0.06)], "After 60 steps, a cannot be told from grpo on acc: the difference is +0.050"),
        (
            [effect("a", 0.05, 0.01), effect("b", -0.05, 0.01), effect("c", 0.001, 1.0)],
            "of 3 arms held against grpo on acc, 1 ends above it (a +0.050), 1 ends below it (b -0.050) and 1 cannot be "
            "told from it (c +0.001).",
        ),
        (
            [effect("a", 0.05, 0.2), effect("b", 0.06, 0.2)],
            "of 2 arms held against grpo on acc, none can be told from it",
        ),
    ],
)
def test_the_answer_follows_holm_and_not_the_sign(effects, said):
    sentences = answer(facts_of(effects, [each.arm for each in effects]))
    assert len(sentences) == 2 and said in sentences[0]


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ("ff", ""),
        ("fx", "WITH FAILED RUNS: 1 of 2 runs have finished (1 failed)."),
        ("frsw", "UNFINISHED: 1 of 4 runs have finished (1 running, 1 stopped, 1 not started)."),
    ],
)
def test_the_first_line_counts_what_is_missing(states, said):
    assert status(facts_of([], ["a"], states)).startswith(said) and bool(status(facts_of([], [], states))) is bool(said)


def test_differences_have_signs():
    assert [signed(value) for value in (0.05, -0.05, 1e-17, float("nan"), 12.0)] == [
        "+0.050",
        "-0.050",
        "0",
        "–",
        "+12",
    ]


# -- time and browser --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_five_arms_of_five_seeds_take_less_than_twenty_seconds(tmp_path):
    curves = [[0.1 + 0.002 * step + 0.01 * seed for step in range(31)] for seed in range(5)]
    arms = {name: Arm(curves, plan=small_plan(2000, 8)) for name in ("grpo", "saerl", "random", "tfidf", "length")}
    folder = write_study(tmp_path / "tiny", arms, list(arms)[1:], questions=400)
    began = time.process_time()
    write_report(folder)
    assert time.process_time() - began < 20


PROBE = """
<script>
setTimeout(() => {
  const { scrollWidth, clientWidth } = document.documentElement;
  const drawn = [...document.querySelectorAll("[data-figure]")].filter((e) => e.querySelector(
    ".scatterlayer .trace, .barlayer .trace, .heatmaplayer image")).map((e) => e.dataset.figure);
  const loaded = performance.getEntriesByType("resource").map((e) => e.name).filter((name) => !name.startsWith("data:"));
  const seen = { width: innerWidth, over: scrollWidth - clientWidth, drawn, loaded, title: document.title };
  parent.postMessage(JSON.stringify(seen), "*");
}, 300);
</script>
"""
FRAME = """
<body style="margin:0"><iframe src="page.html" style="border:0;width:WIDTHpx;height:900px"></iframe>
<script>addEventListener("message", (event) => { document.documentElement.dataset.seen = event.data; });</script>
"""
OFFLINE = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
    "--enable-logging=stderr", "--virtual-time-budget=10000", "--window-size=1300,950",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_draws_it_at_two_widths(tmp_path, width):
    """In a frame, as no window without a screen is as narrow as a phone."""
    assert BROWSER is not None
    text = write_report(three_arms(tmp_path)).read_text()
    (tmp_path / "page.html").write_text(text + PROBE)
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    command = [BROWSER, *OFFLINE, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r'data-seen="([^"]*)"', ended.stdout)
    assert found, ended.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert set(seen["drawn"]) == set(re.findall(r'data-figure="(\w+)"', text)) >= {"curves", "forest", "reach", "costs"}
    assert (seen["width"], seen["over"], seen["loaded"], seen["title"]) == (width, 0, [], "Study tiny")
    assert not [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
