"""What signals know about real problems: `benchmarks/signals.py --data FILE --model FOLDER --sae FOLDER --out FOLDER`.

Every signal answers the same questions about the same prompts: topic, difficulty (in distribution, on an unseen subject,
beyond length, by number of labels), clusters, and which problems were corrupted. Features are cached and every
answer is written as it is found, so a killed run goes on; what is found already is not computed again. Signals that have
nothing to do with a model come first. Nothing is trained but probes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from read_once import read_once
from signal_tables import table, verdicts
from signal_tasks import Clusters, Difficulty, Finding, LearningCurve, Quality, Task, Topics, Transfer

from saerl_lightning.data.features import column_count, row_count
from saerl_lightning.data.planning import with_small_indices
from saerl_lightning.data.probes import ELASTIC_NET, RIDGE
from saerl_lightning.prompts.corruption import CorruptedCopies
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.records import Prompt
from saerl_lightning.signals.cache import CachedSignals
from saerl_lightning.signals.hidden import HiddenSignals
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.signals.random_signals import RandomSignals, ShuffledSignals
from saerl_lightning.signals.sae import FrozenRandomSAESignals, SAESignals
from saerl_lightning.signals.sae_source import SAESource
from saerl_lightning.signals.source import Features, SignalSource
from saerl_lightning.signals.text import LengthSignals, TextSignals

COMPONENTS = 64
SHOWN = ("SAE", "hidden", f"hidden, PCA {COMPONENTS}", "TF-IDF", "length", "frozen-random SAE", "shuffled", "random")


class Components(SignalSource):
    """Principal components of another signal's rows, so that PCA costs no second extraction."""

    def __init__(self, inner: SignalSource, components: int) -> None:
        self.inner = inner
        self.components = components

    def features(self, prompts: Sequence[Prompt]) -> Features:
        from sklearn.decomposition import PCA

        rows = self.inner.features(prompts)
        fewest = min(self.components, row_count(rows), column_count(rows))
        return PCA(fewest, svd_solver="full").fit_transform(rows)

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        return f"PCA {self.components} of {self.inner.fingerprint(prompts)}"


@dataclass(frozen=True)
class Findings:
    """What was found, on disk: one file of numbers and one of predictions for every task and signal."""

    folder: Path

    def read(self, task: Task, signal: str, key: str) -> Finding | None:
        """None where there is nothing, or it was found on other features or labels."""
        numbers, predictions = self._files(task, signal)
        if not numbers.is_file() or (record := json.loads(numbers.read_text()))["key"] != key:
            return None
        return Finding(record["numbers"], np.load(predictions, allow_pickle=False))

    def write(self, task: Task, signal: str, key: str, finding: Finding) -> None:
        """Numbers last, so that they stand for both; each whole or absent."""
        numbers, predictions = self._files(task, signal)
        numbers.parent.mkdir(parents=True, exist_ok=True)
        with (part := predictions.with_suffix(".part")).open("wb") as file:
            np.save(file, finding.predictions, allow_pickle=False)
        part.rename(predictions)
        part.write_text(json.dumps({"key": key, "numbers": finding.numbers}, indent=1))
        part.rename(numbers)

    def _files(self, task: Task, signal: str) -> tuple[Path, Path]:
        stem = self.folder / task.name.replace(" ", "_") / signal.replace(" ", "_").replace(",", "")
        return stem.with_suffix(".json"), stem.with_suffix(".npy")


def signals(given: argparse.Namespace) -> dict[str, SignalSource]:
    """The signals by name, cheap ones first; those whose model or SAE is not given are left out."""
    features = str(given.cache)
    found: dict[str, SignalSource] = {"length": LengthSignals(), "TF-IDF": TextSignals(), "random": RandomSignals()}
    if given.model:
        model = ReadModel(given.model, layer=given.layer)
        found["hidden"] = CachedSignals(HiddenSignals(model), features)
        found[f"hidden, PCA {COMPONENTS}"] = Components(found["hidden"], COMPONENTS)
        if given.sae:
            found["SAE"] = CachedSignals(SAESignals(model, SAESource(given.sae)), features)
        if given.frozen_sae:
            frozen = FrozenRandomSAESignals(model, SAESource(given.frozen_sae))
            found["frozen-random SAE"] = CachedSignals(frozen, features)
    found["shuffled"] = ShuffledSignals(found.get("SAE", found["TF-IDF"]))
    return found


def sample(file: str, limit: int | None) -> list[Prompt]:
    """Problems with subject and difficulty, all or a random sample, in the file's order."""
    prompts = [p for p in FilePrompts(file).load() if p.topic and "difficulty" in p.labels]
    kept = np.sort(np.random.default_rng(0).permutation(len(prompts))[:limit])
    return [prompts[i] for i in kept]


def tasks_of(prompts: Sequence[Prompt]) -> list[Task]:
    """The questions about subject and difficulty."""
    return [
        Topics([prompt.topic or "" for prompt in prompts]),
        Difficulty("difficulty elastic net", ELASTIC_NET, prompts),
        Difficulty("difficulty ridge", RIDGE, prompts),
        Transfer(RIDGE, prompts),
        LearningCurve(RIDGE, prompts),
        Clusters(prompts),
    ]


def find(findings: Findings, tasks: Sequence[Task], name: str, signal: SignalSource, prompts: Sequence[Prompt]) -> None:
    """Answers the questions that have no answer yet for this signal."""
    print(f"{name}: ", end="", flush=True)
    fingerprint = signal.fingerprint(prompts)
    missing = [task for task in tasks if findings.read(task, name, task.key(fingerprint)) is None]
    features = with_small_indices(signal.features(prompts)) if missing else None
    for task in missing:
        began = time.perf_counter()
        assert features is not None
        findings.write(task, name, task.key(fingerprint), task.measure(features))
        print(f"{task.name} {time.perf_counter() - began:.0f} s", end="; ", flush=True)
    print(f"{len(tasks) - len(missing)} found before" if len(missing) < len(tasks) else "")


def report(given: argparse.Namespace, asked: Sequence[tuple[Sequence[Task], Sequence[Prompt]]]) -> str:
    """All tables of what is found, and the verdicts."""
    findings, sources = Findings(given.out / "findings"), signals(given)
    tables, said = [], []
    for tasks, prompts in asked:
        prints = {name: sources[name].fingerprint(prompts) for name in SHOWN if name in sources}
        for task in tasks:
            read = {name: findings.read(task, name, task.key(printed)) for name, printed in prints.items()}
            found = {name: finding for name, finding in read.items() if finding is not None}
            tables.append(table(task, found))
            said += verdicts(task, found)
    described = [f"{len(asked[0][1]):,} problems of `{Path(given.data).name}`"]
    described += [f"{len(prompts):,} copies of `{Path(given.quality_data).name}`" for _, prompts in asked[1:]]
    shuffled = "the SAE's" if given.sae else "TF-IDF's"
    notes = (
        f"{', '.join(described)}; model `{Path(given.model or 'none').name}`. In brackets 95 % bootstrap intervals over "
        f"prompts. Shuffled rows are {shuffled}. TF-IDF's vocabulary and PCA's directions were found on all prompts, "
        "without labels."
    )
    head = "### The SAE beside its best rival\n\nPaired bootstrap over prompts; shuffled and random rows are no rivals.\n\n"
    verdict = [head + "\n".join(said)] if said else ["No SAE was given, so there is no verdict."]
    return "\n\n".join(["## Signals", notes, *tables, *verdict]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", required=True, help="problems with topic and difficulty, a .jsonl or .parquet file")
    parser.add_argument("--model", help="HF folder that is read; null leaves out hidden states and SAEs")
    parser.add_argument("--layer", type=int, help="layer that is read; by default the middle one")
    parser.add_argument("--sae", help="folder of the SAE")
    parser.add_argument("--frozen-sae", help="folder of the SAE with a frozen random decoder")
    parser.add_argument("--quality-data", help="problems that are corrupted, a .jsonl or .parquet file")
    parser.add_argument("--quality-samples", type=int, default=1500, help="how many; half of them are corrupted")
    parser.add_argument("--limit", type=int, help="take a random sample of so many problems of --data")
    parser.add_argument("--out", type=Path, default=Path("runs/signals-evidence"), help="folder of findings and tables")
    parser.add_argument("--cache", default="runs/signals", help="folder of feature rows, as data.signal_cache")
    given = parser.parse_args()
    prompts = sample(given.data, given.limit)
    asked: list[tuple[Sequence[Task], Sequence[Prompt]]] = [(tasks_of(prompts), prompts)]
    if given.quality_data:
        copies = CorruptedCopies(given.quality_samples).prompts(FilePrompts(given.quality_data).load())
        asked.append(([Quality(RIDGE, copies)], copies))
    sources = signals(given)
    for _, about in asked:
        read_once([source for source in sources.values() if isinstance(source, CachedSignals)], about)
    for name, signal in sources.items():
        for tasks, about in asked:
            find(Findings(given.out / "findings"), tasks, name, signal, about)
    text = report(given, asked)
    part = given.out / "signals.md.part"
    part.write_text(text)
    part.rename(given.out / "signals.md")
    print(f"\n{text}\nwrote {given.out / 'signals.md'}")


if __name__ == "__main__":
    main()
