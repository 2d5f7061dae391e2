"""`study causal`: tests whether the difficulty probe responds to difficulty, each as a section of the study's report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np

from saerl_lightning.causal.edits import edited, edits
from saerl_lightning.causal.fitting import Fitting, fit_probes
from saerl_lightning.causal.injection import injection
from saerl_lightning.causal.steering_test import steering
from saerl_lightning.causal.subject import MeasurementCache, Subject
from saerl_lightning.causal.sums import Sum, draw_sums
from saerl_lightning.causal.zeroing import Labelled, zeroing
from saerl_lightning.errors import InputError
from saerl_lightning.prompts.mixture import open_prompts
from saerl_lightning.ranges import CountFrom0, Range, Seed, require_arguments
from saerl_lightning.records import Prompt
from saerl_lightning.signals.cache import cached
from saerl_lightning.study.report.section import Section

FILES = {"injection": "1-injection", "edits": "2-edits", "zeroing": "3-zeroing", "steering": "4-steering"}
DOSE = "5-dose"
# Largest number of questions. There are only 126 sums of two terms and one digit, and the probes need some of them.
MOST = 100
# Folder of cached features, shared with plans.
SIGNALS = "runs/signals"


def causal(
    folder: str,
    model: str = "models/smollm2-135m",
    sae: str = "models/smollm2-135m-sae",
    layer: CountFrom0 | None = None,
    tests: list[str] | None = None,
    prompts: str | None = None,
    label: str = "difficulty",
    dose: str | None = None,
    questions: Annotated[int, Range(4, MOST)] = 48,
    samples: Annotated[int, Range(2, 1000)] = 16,
    fitted: Annotated[int, Range(40, 10_000)] = 400,
    seed: Seed = 0,
) -> None:
    """Tests a difficulty probe causally: words injected, questions edited, features zeroed, the model steered.

    The sections are written to FOLDER/causal, where `study report FOLDER` finds them. Measurements are stored beside
    them, so the same command resumes interrupted tests.

    Args:
        folder: Folder of a study, or a new folder.
        model: HF folder or hub name of the model that answers and whose activations are read.
        sae: Folder of an SAE of the model.
        layer: Layer whose output the SAE reads, counted from 0; null takes the middle one.
        tests: Tests to run: injection, edits, zeroing, steering; null runs all.
        prompts: File of labelled prompts: the zeroing test orders them, and the injection test takes words from them.
        label: Label that the probe of the zeroing test learns.
        dose: Folder of a study whose arms were trained on orders without some features; adds a test of their
            accuracies.
        questions: Number of sums in each test.
        samples: Number of answers to each question.
        fitted: Number of sums that the probes are fitted on.
        seed: Seed of sums, answers, folds and random features.

    Raises:
        InputError: if an argument is out of range, or model, SAE or prompts are missing.
    """
    require_arguments(causal, locals())
    wanted = list(FILES) if tests is None else tests
    _check(wanted, dose)
    out = Path(folder) / "causal"
    if wanted:
        pool = open_prompts(prompts).load() if prompts is not None else []
        cases = CausalTests(
            Subject.load(model, sae, layer), questions, samples, fitted, seed, MeasurementCache(out / "measured")
        )
        for name in (each for each in FILES if each in wanted):
            _write(cases.run(name, pool, label), out / f"{FILES[name]}.json")
    if dose is not None:
        from saerl_lightning.causal.dose import dose as test_dose

        _write(test_dose(Path(dose)), out / f"{DOSE}.json")


class CausalTests:
    """The causal tests of one model. Data that several tests need are computed at first use.

    Args:
        subject: Model that answers and whose activations are read.
        questions: Number of sums in each test.
        samples: Number of answers to each question.
        fitted: Number of sums that the probes are fitted on.
        seed: Seed of everything random.
        cache: Cache of measured answers.
    """

    def __init__(
        self, subject: Subject, questions: int, samples: int, fitted: int, seed: int, cache: MeasurementCache
    ) -> None:
        self.subject, self.samples, self.fitted, self.seed, self.cache = subject, samples, fitted, seed, cache
        half = questions // 2
        self.sums: list[Sum] = draw_sums(questions - half, 2, 1, seed) + draw_sums(half, 2, 2, seed)

    @cached_property
    def fitting(self) -> Fitting:
        """The probes, fitted on sums that no test uses."""
        asked = [each.question() for each in self.sums]
        asked += [each for edits in edited(self.sums, self.seed).values() for each in edits]
        return fit_probes(self.subject, self.fitted, asked, self.seed, self.cache)

    def run(self, name: str, pool: Sequence[Prompt], label: str) -> Section:
        """Runs one test and returns its section.

        Args:
            name: Name of the test.
            pool: Labelled prompts; may be empty.
            label: Name of the prompts' label.
        """
        drawn = self.samples, self.seed, self.cache
        if name == "injection":
            return injection(self.subject, self.fitting, self.sums, pool, *drawn)
        if name == "edits":
            return edits(self.subject, self.fitting, self.sums, *drawn)
        if name == "zeroing":
            return zeroing(self._labelled(pool, label), self.seed)
        questions = [each.question() for each in self.sums]
        return steering(self.subject, self.fitting.sae.weights, self.fitting.features, questions, *drawn)

    def _labelled(self, pool: Sequence[Prompt], label: str) -> Labelled:
        if pool:
            return Labelled.of(pool, label, cached(self.subject.signal, SIGNALS), self.seed)
        fitting = self.fitting
        label_name = f"measured difficulty of {len(fitting.labels)} sums"
        return Labelled(label_name, fitting.features, np.arange(len(fitting.labels)), fitting.labels)


def _check(tests: Sequence[str], dose: str | None) -> None:
    for name in tests:
        if name not in FILES:
            raise InputError(f"no causal test is called '{name}'; write some of {', '.join(FILES)}")
    if not tests and dose is None:
        raise InputError(f"no test is asked for; write some of {', '.join(FILES)}, or --dose STUDY")


def _write(section: Section, path: Path) -> None:
    section.write(path)
    print(f"{path}: {section.title}\n{section.text}\n", flush=True)
