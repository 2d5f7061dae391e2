"""Pictures of README and docs: takes screenshots of a plan's page, a study's report and the site, small enough to commit.

`make pictures` runs it. It needs the package of `requirements/pictures.txt` and a Chromium, on the path or named by the
variable CHROMIUM. The plan's page is made here, unless one is given; the report and the site are taken where `make demo` and
`make docs` left them, what a run served where the study `online_core.yaml` did; what is not there is left out.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
LARGEST = 200_000  # bytes of a picture
SHADES = 96  # colours of a picture: charts and text need few
TASKS = ("chain_sum", "basic_arithmetic", "spell_backward", "letter_counting", "gcd", "word_sorting")
SLOTS = {
    "signals": "TextSignals",
    "reference": "CorruptedCopies",
    "filtering": "QualityFilter",
    "filtering.label": "quality",
    "clustering": "KMeansClusters",
    "clustering.clusters": "8",
    "curriculum": "EasyToHard",
    "curriculum.label": "difficulty",
    "mixing": "TailMixing",
    "mixing.fraction": "0.1",
}


@dataclass(frozen=True)
class Picture:
    """A part of a page as a browser shows it: what is in the window when an element is scrolled to its top."""

    name: str
    page: Path
    width: int
    height: int
    scheme: str = "light"
    scroll_to: str = "body"


def pictures(plan: Path) -> list[Picture]:
    """Lists all pictures.

    Args:
        plan: The plan's page.
    """
    report, site = ROOT / "runs/demo/report/report.html", ROOT / "site/index.html"
    served = ROOT / "runs/study/online_core/sae_posterior/seed-0/served.html"
    return [
        Picture("plan", plan, 1160, 700, scroll_to="#order"),
        Picture("plan-map-dark", plan, 1160, 900, "dark", "#map"),
        Picture("plan-phone", plan, 390, 844, scroll_to="#order"),
        Picture("report", report, 1160, 900),
        Picture("report-phone", report, 390, 844, "dark"),
        Picture("served", served, 1160, 900),
        Picture("served-phone", served, 390, 844, "dark"),
        Picture("site", site, 1160, 700),
        Picture("site-phone", site, 390, 844, "dark"),
    ]


def make_plan(folder: Path) -> Path:
    """Makes a plan of 400 procedural questions, and returns its page."""
    from saerl_lightning.assets.tiny import build_tiny_policy
    from saerl_lightning.prompts.reasoning_gym import ReasoningGymPrompts

    prompts = ReasoningGymPrompts(tasks=dict.fromkeys(TASKS, 1.0), size=400, seed=1).load()
    noise = random.Random(0)
    rows = [
        {
            "id": each.uid,
            "prompt": each.text,
            "answer": each.answer,
            "topic": each.topic,
            # No measurement: longer questions are called harder, with much noise.
            "difficulty": min(1.0, max(0.0, len(each.text) / 300 + noise.gauss(0, 0.15))),
        }
        for each in prompts
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_tiny_policy(str(folder / "policy"), [each.text for each in prompts], hidden_size=64, layers=2)
    flags = [f"--data.{name}={value}" for name, value in SLOTS.items()]
    policy, batch = f"--model.policy.path={folder / 'policy'}", "--data.batch_size=8"
    command = [
        sys.executable,
        "-m",
        "saerl_lightning",
        "plan",
        "-c",
        "grpo.yaml",
        "-c",
        "engine/hf.yaml",
        policy,
        batch,
    ]
    train, out = (
        f"--data.train={folder / 'prompts.jsonl'}",
        ["--trainer.accelerator=cpu", "--out", str(folder / "plan")],
    )
    subprocess.run([*command, train, *flags, *out], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)  # noqa: S603  # our own
    return folder / "plan" / "plan.html"


def browser() -> str:
    """Path of a Chromium."""
    named = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if named is None:
        sys.exit("error: no Chromium is on the path; install one, or name its file in CHROMIUM")
    return named


def taken(driver: Any, chromium: str, picture: Picture) -> bytes:
    """Takes a picture as PNG; the page must not be wider than the window."""
    flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    opened = driver.chromium.launch(
        executable_path=chromium, args=[*flags, *os.environ.get("CHROMIUM_FLAGS", "").split()]
    )
    window = {"width": picture.width, "height": picture.height}
    page = opened.new_page(viewport=window, color_scheme=picture.scheme, is_mobile=picture.width < 600)
    page.goto(picture.page.as_uri())
    page.wait_for_timeout(1500)
    page.locator(picture.scroll_to).first.evaluate("element => element.scrollIntoView({behavior: 'instant'})")
    page.wait_for_timeout(500)
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    image = page.screenshot()
    opened.close()
    if over:
        sys.exit(f"error: {picture.page.name} is {over} pixels wider than a window of {picture.width}")
    return image


def written(image: bytes, path: Path) -> int:
    """Writes a picture with few colours and returns its size in bytes."""
    from io import BytesIO

    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    Image.open(BytesIO(image)).convert("RGB").quantize(SHADES).save(path, optimize=True)
    size = path.stat().st_size
    if size > LARGEST:
        sys.exit(f"error: {path} has {size:,} bytes, more than {LARGEST:,}; take a smaller part of the page")
    return size


def lines() -> Iterator[str]:
    """Takes all pictures; yields a line for each."""
    chromium = browser()
    try:
        from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]
    except ImportError:
        sys.exit("error: playwright is missing; install what requirements/pictures.txt names")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        for picture in pictures(Path(sys.argv[1]).resolve() if sys.argv[1:] else make_plan(Path(folder))):
            if not picture.page.is_file():
                yield f"left out: {picture.name}, because there is no {picture.page.relative_to(ROOT)}"
                continue
            size = written(taken(driver, chromium, picture), PICTURES / f"{picture.name}.png")
            yield f"docs/pictures/{picture.name}.png: {size:,} bytes"


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)
