"""The page: what the data says stays text, what is off is left out, and a real browser draws it all from the file alone."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from saerl_lightning.plan import SamplePlan
from saerl_lightning.plan_page import frame, page
from saerl_lightning.plan_page.charts import COLOURS
from saerl_lightning.plan_page.comparison import compare
from saerl_lightning.plan_page.page import render
from saerl_lightning.plan_page.planned import MadePlan, OperationReport
from saerl_lightning.records import Prompt
from tests.plan_page.conftest import make_run

CHARTS = {"difficulty", "composition", "sizes", "quality"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OFFLINE = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip


def data_of(text: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def charts_of(text: str) -> set[str]:
    return set(re.findall(r'data-figure="(\w+)"', text))


def test_the_page_has_every_panel_and_is_the_same_every_time(planned):
    text = render(planned, ["3 batches x 1 update(s)"], compare(planned.ledger, planned.ledger))
    assert charts_of(text) == CHARTS == set(data_of(text)["figures"])
    assert re.findall(r'<section id="(\w+)"', text) == ["against", "map", "order", "clusters", "out", "scores", "run"]
    assert "<li>3 batches x 1 update(s)</li>" in text
    assert text.count('class="panel card"') == 3
    assert "<td>correlation of the two orders" in text and '<td class="n">0.400 to 0.600' not in text
    assert text == render(planned, ["3 batches x 1 update(s)"], compare(planned.ledger, planned.ledger))


def test_what_prompts_say_stays_text(planned):
    """One prompt ends the script, opens another and asks for a picture from elsewhere."""
    text = render(planned)
    assert "document.title" in text  # it is shown …
    for written in re.findall(r"[^\n]{9}document\.title", text):
        assert "<script>" not in written  # … and nowhere as a tag
    assert "<img src=" not in text.partition("<script>")[0]
    assert text.count("</script>") == 3  # the page's own: data, plotly, drawing
    shown = data_of(text)["map"]["text"][4]
    assert "</script><script>document.title" in shown  # whole again where JSON is read
    sizes = data_of(text)["figures"]["sizes"]["data"]
    assert {trace["name"] for trace in sizes} == {"geometry &lt;b&gt;", "algebra", "no topic"}  # plotly reads tags


def test_nothing_is_asked_of_another_host(planned):
    text = render(planned)
    assert "default-src 'none'" in text
    own = text.replace(frame.plotly_script(), "")
    assert not re.search(
        r'(src|href|url)\s*[=(]\s*["\']?(https?:)?//', own.replace(html.escape('"'), '"').split("<script")[0]
    )
    assert "@import" not in own and "<link" not in own and "fetch(" not in own


def test_a_slot_that_is_on_and_does_nothing_says_why():
    run = make_run()
    run = replace(
        run, operations=[*run.operations, OperationReport("mixing", "TailMixing", {}, idle="no prompt moves")]
    )
    text = render(run)
    assert "TailMixing is on, but does nothing: no prompt moves." in text
    assert (
        '</code> TailMixing <small class="idle">did nothing: no prompt moves</small></h3>' in text
    )  # beside its numbers
    assert text.count('class="idle"') == 1
    assert "is on, but does nothing" not in render(make_run())


def test_panels_of_slots_that_are_off_are_left_out():
    prompts = [Prompt.asking(f"p{i}", f"What is {i}?", "1") for i in range(8)]
    text = render(MadePlan(prompts, SamplePlan.sequential(8, 4), "d"))
    assert not charts_of(text) and data_of(text)["map"] is None
    assert re.findall(r'<section id="(\w+)"', text) == ["order", "run"]
    for slot in ("signals", "filtering", "clustering", "curriculum", "mixing"):
        assert f"<li><code>data.{slot}</code> No " in text


def test_a_constant_rating_and_a_single_batch_are_drawn():
    prompts = [Prompt.asking(f"p{i}", "same", "1") for i in range(4)]
    plan = replace(SamplePlan.sequential(4, 4), cluster=np.zeros(4, int), difficulty=np.ones(4), quality=np.ones(4))
    text = render(MadePlan(prompts, plan, "d", features=np.ones((4, 2)), signal="RandomSignals"))
    assert charts_of(text) == CHARTS and "One cluster holds all 4." in text
    assert data_of(text)["map"]["x"] == [0.0] * 4


def test_every_box_of_a_chart_takes_the_height_of_its_chart():
    """A box with a height of its own would leave a gap below a chart of few rows."""
    assert not re.search(r"\.(chart|map)[^}]*height", frame.asset("page.css"))
    assert frame.asset("page.js").count("style.height = `${layout.height}px`") == 2  # the charts, and the map
    for grid in re.findall(r"\{[^}]*display: grid[^}]*\}", frame.asset("page.css")):
        assert "align-items: start" in grid  # a short card does not take a tall one's height


def test_the_map_names_the_largest_clusters_and_the_cards_have_their_colours(planned):
    text = render(planned)
    largest = data_of(text)["map"]["largest"]
    sizes = {2: 20, 0: 19, 1: 19}
    assert [sizes[number] for number in largest] == [20, 19, 19]
    badges = re.findall(r'<span class="badge" style="color: (#\w+)"[^>]*>●</span> (\d)', text)
    assert badges == [(COLOURS[k], str(number)) for k, number in enumerate(largest)]


def test_a_large_pool_is_sampled(planned, monkeypatch):
    monkeypatch.setattr(page, "POINTS", 10)
    text = render(planned)
    assert len(data_of(text)["map"]["x"]) == 10 and "10 of 60, drawn at random" in text


# -- in a browser ------------------------------------------------------------------------------------------------------

PROBE = """
<script>
setTimeout(() => {
  const { scrollWidth, clientWidth } = document.documentElement;
  const seen = { width: innerWidth, over: scrollWidth - clientWidth, marks: {} };
  for (const button of document.querySelectorAll(".switch button")) {
    button.click();
    seen.marks[button.textContent] = document.querySelectorAll("#map-chart .scatterlayer .point").length;
  }
  seen.drawn = [...document.querySelectorAll("[data-figure]")].filter((e) => e.querySelector(
    ".scatterlayer .trace, .barlayer .trace, .heatmaplayer image")).map((e) => e.dataset.figure);
  seen.gaps = [...document.querySelectorAll(".chart")].map((e) => Math.abs(
    e.clientHeight - e.querySelector("svg.main-svg").getBoundingClientRect().height)).filter((gap) => gap > 1);
  seen.loaded = performance.getEntriesByType("resource").map((e) => e.name).filter((name) => !name.startsWith("data:"));
  seen.title = document.title;
  document.documentElement.dataset.seen = JSON.stringify(seen);
}, 300);
</script>
"""


@dataclass(frozen=True)
class Visit:
    """What a browser made of a page."""

    seen: dict
    console: list[str]


def visit(text: str, folder: Path, width: int, *flags: str) -> Visit:
    assert BROWSER is not None
    (folder / "plan.html").write_text(text + PROBE)
    address = (folder / "plan.html").as_uri()
    looks = [f"--window-size={width},900", "--virtual-time-budget=10000", "--enable-logging=stderr", "--dump-dom"]
    command = [BROWSER, *OFFLINE, f"--user-data-dir={folder / 'profile'}", *looks, *flags, address]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    seen = re.search(r'data-seen="([^"]*)"', ended.stdout)
    assert seen, ended.stderr[-2000:]
    return Visit(json.loads(html.unescape(seen[1])), [line for line in ended.stderr.splitlines() if "CONSOLE" in line])


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.parametrize(("width", "flags"), [(1280, []), (500, ["--blink-settings=preferredColorScheme=0"])])
def test_a_browser_draws_everything_from_the_file_alone(planned, tmp_path, width, flags):
    """On a desk in light colours and, in the narrowest window that there is without a screen, as on a phone in dark ones."""
    text = render(planned, ["a fact"], compare(planned.ledger, planned.ledger))
    found = visit(text, tmp_path, width, *flags)
    assert not found.console
    assert set(found.seen["drawn"]) == CHARTS
    assert found.seen["marks"] == dict.fromkeys(["Cluster", "Difficulty", "Topic", "Fate"], 60)
    assert found.seen["loaded"] == [] and found.seen["gaps"] == []
    assert found.seen["title"] == "Training plan 0123456789abcdef"  # the prompt that would have changed it did not run
    assert (found.seen["width"], found.seen["over"]) == (width, 0)  # nothing sticks out


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_the_browser_test_sees_errors_and_requests(planned, tmp_path):
    """The page's own policy stops a request and says so; without the policy it would have been made."""
    asking = render(planned).replace(
        "</main>", '<img src="http://elsewhere.invalid/x.png"><script>nowhere()</script></main>'
    )
    stopped = visit(asking, tmp_path, 1280)
    assert any("elsewhere.invalid" in line for line in stopped.console)
    assert any("nowhere is not defined" in line for line in stopped.console)
    open_page = visit(asking.replace("Content-Security-Policy", "x-nothing"), tmp_path, 1280)
    assert open_page.seen["loaded"] == ["http://elsewhere.invalid/x.png"]
