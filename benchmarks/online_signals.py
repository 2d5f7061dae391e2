"""Which features predict the groups that vary? Online selection is simulated with each: `benchmarks/online_signals.py`.

The tool simulate plays the feature posterior over prompts with known pass rates (the label `difficulty`): half the pool, each
prompt once, so that only features can predict what is served. Every set of features gets the same starting orders and seeds,
so their differences are paired. Signals are cached, and a set that has its file in `--out` is not played again. Nothing
learns in it: it says how many groups vary, and nothing of accuracy.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t

ROOT = Path(__file__).resolve().parent.parent
SHIFTS = ("0", "0.02")  # what the policy's logits gain a step
Plays = dict[str, dict[str, list[dict[str, float]]]]


def features(model: str, layer: int, sae: str, frozen: str | None) -> dict[str, list[str]]:
    """Returns the flags of every set of features."""
    read = [f"--data.signals.model.path={model}", f"--data.signals.model.layer={layer}"]
    inner = "--data.signals.init_args.inner"
    sets = {
        "SAE": ["--data.signals=SAESignals", *read, f"--data.signals.sae.path={sae}"],
        "SAE, a weight for every feature": [
            "--data.signals=SAESignals",
            *read,
            f"--data.signals.sae.path={sae}",
            "--data.online.belief=SparsePosterior",
        ],
        "hidden states": ["--data.signals=HiddenSignals", *read],
        "TF-IDF": ["--data.signals=TextSignals"],
        "length": ["--data.signals=LengthSignals"],
        "shuffled SAE": [
            "--data.signals.class_path=ShuffledSignals",
            f"{inner}.class_path=SAESignals",
            f"{inner}.init_args.model.path={model}",
            f"{inner}.init_args.model.layer={layer}",
            f"{inner}.init_args.sae.path={sae}",
        ],
        "random": ["--data.signals=RandomSignals"],
        "none (counts)": ["--data.online.belief=PromptBeta"],
    }
    if frozen is not None:
        sets["frozen-random SAE"] = [
            "--data.signals=FrozenRandomSAESignals",
            *read,
            f"--data.signals.sae.path={frozen}",
        ]
    return sets


def play(given: argparse.Namespace, flags: Sequence[str], shift: str, out: Path) -> None:
    """Simulates one set of features, unless its file is there."""
    if out.is_file():
        return
    command = [
        sys.executable,
        "main.py",
        "simulate",
        "-c",
        "configs/grpo.yaml",
        "-c",
        "configs/model/smollm2_135m.yaml",
    ]
    command += ["-c", "configs/online/sae_posterior.yaml", *flags, f"--data.train={given.prompts.resolve()}"]
    command += [f"--data.signal_cache={given.out.resolve() / 'signals'}", "--data.chat.max_prompt_tokens=1024"]
    command += [f"--steps={given.steps}", f"--seeds={given.seeds}", f"--offset={given.offset}", f"--shift={shift}"]
    subprocess.run([*command, f"--out={out.resolve()}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def effective(plays: Plays, arm: str = "online") -> np.ndarray:
    """Returns the share of groups that varied, one a seed."""
    return np.array([each["effective"] for each in plays["plays"][arm]])


def interval(values: np.ndarray, digits: int = 3, sign: str = "") -> str:
    """Formats a mean with its 95 % interval of t over seeds."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():{sign}.{digits}f} ± {half:.{digits}f}"


def table(found: dict[tuple[str, str], Plays], first: str) -> list[str]:
    """Makes a Markdown table of each shift: the share that varied, its difference to the first set, calibration."""
    lines: list[str] = []
    for shift in SHIFTS:
        own = {name: plays for (name, each), plays in found.items() if each == shift}
        lines += [f"Shift {shift} a step", "", f"| features | vary | less {first} | predicted | Brier |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        base = next(iter(own.values()))
        for arm in ("oracle", "the plan as it is"):
            lines.append(f"| {arm} | {interval(effective(base, arm))} | | | |")
        for name, plays in sorted(own.items(), key=lambda each: -effective(each[1]).mean()):
            less = "" if name == first else interval(effective(plays) - effective(own[first]), sign="+")
            told = [np.mean([run[key] for run in plays["plays"]["online"]]) for key in ("effective_predicted", "brier")]
            lines.append(f"| {name} | {interval(effective(plays))} | {less} | {told[0]:.3f} | {told[1]:.3f} |")
        lines.append("")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="prompts file with the label difficulty")
    parser.add_argument("--model", default="models/smollm2-135m", help="model whose layer is read")
    parser.add_argument("--layer", type=int, default=15, help="layer that the SAE was trained on")
    parser.add_argument("--sae", default="models/smollm2-135m-sae", help="folder of the SAE")
    parser.add_argument("--frozen-sae", help="folder of an SAE with a frozen random decoder; left out without one")
    parser.add_argument("--steps", type=int, default=186, help="batches of 16; 186 are half of 5,939 prompts")
    parser.add_argument("--seeds", type=int, default=16, help="plays of each set")
    parser.add_argument("--offset", type=float, default=-1.0, help="added to the logits of all pass rates")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/online_signals"), help="folder of plays, cache and table"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], Plays] = {}
    for name, flags in features(given.model, given.layer, given.sae, given.frozen_sae).items():
        for shift in SHIFTS:
            file = given.out / f"{'-'.join(re.findall('[a-z]+', name.lower()))}-{shift}.json"
            play(given, flags, shift, file)
            found[name, shift] = json.loads(file.read_text())
            print(f"{name}, shift {shift}: {interval(effective(found[name, shift]))}", flush=True)
    text = "\n".join(table(found, "SAE"))
    (given.out / "table.md").write_text(text)
    with (given.out / "plays.csv").open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["features", "shift", "arm", "seed", "effective"])
        for (name, shift), plays in found.items():
            for arm in plays["plays"]:
                rows = enumerate(effective(plays, arm).tolist())
                writer.writerows([name, shift, arm, seed, f"{value:.6f}"] for seed, value in rows)
    print(text)


if __name__ == "__main__":
    main()
