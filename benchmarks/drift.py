"""What signals know about a policy while it is trained: `benchmarks/drift.py RUN -c CONFIG --sae FOLDER --out STUDY/drift`.

RUN is a run folder with checkpoints of several steps, as `main.py fit` leaves it with
`--checkpoint.save_top_k=-1 --checkpoint.every_n_train_steps=N` (`checkpoints/epoch=0-step=28.ckpt`, ..., `last.ckpt`).
CONFIG is the run's whole configuration, `RUN/config.yaml` where you made the run yourself; its classes and paths are used,
so read one from elsewhere first. At step 0, the policy that the run started from, and at every checkpoint, pass rates of
the same training prompts are measured again, features are read with the weights of that step and the SAE of the first
policy, and the questions of `signals.py` are asked; and the probe of step 0 is asked once more. Weights, labels, features
and findings are kept under `OUT/RUN'S NAME/`, so a killed run goes on; that folder may be deleted when all is done. Nothing
is trained but probes.

The report's sections are `OUT/RUN'S NAME-*.json`, the same words and tables stand in `OUT/RUN'S NAME/drift.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from drift_form import markdown
from drift_probe import FoldFits, OldProbe
from drift_run import FLAGS, Measured, Run, labelled_everywhere
from drift_signals import Signals, explained_variance, layer_of
from drift_tables import FRESH, OLD_PROBE, OLD_ROWS, Step, sections
from read_once import read_once
from signal_tasks import Difficulty, Finding, Task, Topics
from signals import Findings, find
from tqdm import tqdm

from saerl_lightning.data.features import dense
from saerl_lightning.data.planning import with_small_indices
from saerl_lightning.data.probes import ELASTIC_NET
from saerl_lightning.errors import InputError
from saerl_lightning.files import write_whole
from saerl_lightning.records import Prompt
from saerl_lightning.signals.source import SignalSource


@dataclass(frozen=True)
class Moment:
    """One step on disk: its weights, its two files of labels, and a folder for findings."""

    step: int
    policy: str
    labels: list[Path]
    place: Path


class Start:
    """Step 0 of one signal: its features, labels and, once they are asked for, the fits of its probe."""

    def __init__(self, signal: SignalSource, prompts: Sequence[Prompt], measured: Measured) -> None:
        self.signal = signal
        self.prompts = prompts
        self.labels = measured.difficulty
        self.origin = f"{signal.fingerprint(prompts)} {self.labels.tolist()}"

    @cached_property
    def fits(self) -> FoldFits:
        """Fits the method's probe for difficulty."""
        return FoldFits.of(ELASTIC_NET, with_small_indices(self.signal.features(self.prompts)), self.labels)

    def old_probe(self, name: str, measured: Measured) -> OldProbe:
        """The task of predicting difficulty as it was measured at some step."""
        return OldProbe(name, measured.difficulty, lambda: self.fits, self.origin)


def moments(run: Run, out: Path, count: int, samples: int, seed: int) -> list[Moment]:
    """Exports and measures every checkpoint that was not yet."""
    found = []
    for checkpoint in tqdm(run.checkpoints(), unit="checkpoint", desc=run.name):
        place = run.place(checkpoint, out)
        policy = run.weights(checkpoint, place)
        labels = run.measure(policy, place, run.sample(count, seed), samples, checkpoint.step)
        found.append(Moment(checkpoint.step, policy, labels, place))
    return found


def ask(moment: Moment, signals: Signals, starts: dict[str, Start], prompts: Sequence[Prompt]) -> Step:
    """Reads the features of a step and answers what has no answer yet."""
    print(f"step {moment.step}", flush=True)
    measured = Measured.read(moment.labels, [prompt.uid for prompt in prompts])
    labels = measured.difficulty.tolist()
    prompts = [replace(p, labels={**p.labels, "difficulty": d}) for p, d in zip(prompts, labels, strict=True)]
    read_once(signals.cached, prompts)
    findings, found = Findings(moment.place / "findings"), {}
    for name, signal in signals.by_name.items():
        tasks: list[Task] = [Difficulty(FRESH, ELASTIC_NET, prompts)]
        if len({prompt.topic for prompt in prompts}) > 1:
            tasks.append(Topics([prompt.topic or "" for prompt in prompts]))
        start = starts.setdefault(name, Start(signal, prompts, measured))
        now, then = start.old_probe(OLD_PROBE, measured), start.old_probe(OLD_ROWS, measured)
        find(findings, [*tasks, now], name, signal, prompts)
        find(findings, [then], name, start.signal, prompts)
        found[name] = answers(findings, [*tasks, now], name, signal.fingerprint(prompts))
        found[name] |= answers(findings, [then], name, start.signal.fingerprint(prompts))
    return Step(moment.step, measured, found, explained_variance(dense(signals.sums.features(prompts))))


def answers(findings: Findings, tasks: Sequence[Task], name: str, fingerprint: str) -> dict[str, Finding]:
    """What was found, by task."""
    read = {task.name: findings.read(task, name, task.key(fingerprint)) for task in tasks}
    return {task: finding for task, finding in read.items() if finding is not None}


def drift(given: argparse.Namespace) -> Path:
    """Does everything that is not done yet, and writes the sections; gives the page's path.

    Raises:
        InputError: if the run, its checkpoints or the SAE can't be read, or a number is out of range.
    """
    if given.samples < 2 or given.samples % 2:
        raise InputError(f"--samples is {given.samples}; write an even number, for labels are measured in two halves")
    run, sae = Run.read(given.run, given.config), str(given.sae)
    layer = layer_of(given.sae) if given.layer is None else given.layer
    out = given.out / run.name
    found = moments(run, out, given.prompts, given.samples, given.seed)
    drawn = run.sample(given.prompts, given.seed).load()
    prompts = labelled_everywhere(drawn, [file for each in found for file in each.labels])
    starts: dict[str, Start] = {}
    steps = [ask(each, Signals.of(each.policy, layer, sae, str(out / "features")), starts, prompts) for each in found]
    about = (
        f"Run '{run.name}', {len(prompts)} of {len(drawn)} training prompts (no text twice; seed {given.seed}) with "
        f"{given.samples} answers each at {len(steps)} steps, SAE '{given.sae.name}' at layer {layer}. In brackets 95 % "
        "bootstrap intervals over prompts; one run, so they say nothing about other runs."
    )
    made = sections(steps, about)
    for name, section in made.items():
        section.write(given.out / f"{run.name}-{name}.json")
    write_whole(out / "drift.md", markdown(made))
    return out / "drift.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=Path, help=f"run folder, trained with {FLAGS}")
    parser.add_argument(
        "-c", "--config", type=Path, required=True, help="the run's whole configuration: RUN/config.yaml"
    )
    parser.add_argument("--sae", type=Path, required=True, help="folder of the SAE of the policy before training")
    parser.add_argument("--layer", type=int, help="layer that is read; by default the SAE's own")
    parser.add_argument("--prompts", type=int, default=512, help="training prompts that are measured at every step")
    parser.add_argument("--samples", type=int, default=8, help="answers a prompt and step, in two halves; even")
    parser.add_argument("--seed", type=int, default=0, help="of the sample of prompts and of the answers")
    parser.add_argument("--out", type=Path, help="folder of the sections, STUDY/drift; by default RUN/drift")
    given = parser.parse_args()
    given.out = given.out or given.run / "drift"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn about every process started after them
    try:
        page = drift(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"\n{page.read_text()}\nwrote {page}")


if __name__ == "__main__":
    main()
