"""The gate of a study: its world can tell signals apart only if an oracle beats its null there, by three standard errors.

The oracle's operation knows the truth, the null's knows nothing; both run on seeds of their own, so that a world can be
tuned by its gate without a look at what it will be used for. Where the gate does not hold, no signal can earn anything that
the study could see, and "no difference" would say nothing of signals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from saerl_lightning.data.scores import Interval
from saerl_lightning.errors import InputError
from saerl_lightning.study.effects import compare
from saerl_lightning.study.report.findings import signed, signed_interval
from saerl_lightning.study.report.numbers import StudyNumbers, read_numbers
from saerl_lightning.study.results import SPEC, StudyResults
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.study.stages import stages_used

ERRORS = 3.0  # standard errors that the oracle must be above its null


@dataclass(frozen=True)
class GateResult:
    """What the runs of oracle and null say."""

    oracle: str
    null: str
    difference: Interval
    error: float  # standard error of the difference; NaN if there are no two pairs of runs

    @property
    def holds(self) -> bool:
        """Whether the oracle is `ERRORS` standard errors above its null."""
        return self.difference.value >= ERRORS * self.error

    @property
    def said(self) -> str:
        """The result in a sentence."""
        if not self.error > 0:
            return f"gate does not hold: {self.oracle} and {self.null} have no two finished pairs of runs that differ"
        errors = self.difference.value / self.error
        return (
            f"gate {'holds' if self.holds else 'does not hold'}: {self.oracle} ends {signed(self.difference.value)} from "
            f"{self.null} (95 % interval {signed_interval(self.difference)}), {errors:.1f} standard errors, and "
            f"{ERRORS:g} are asked for"
        )


def gate_folder(root: Path) -> Path:
    """Folder of a gate's runs, beside that of its study.

    Args:
        root: Folder of the study.
    """
    return root.with_name(f"{root.name}_gate")


def gate_study(spec: StudySpec) -> StudySpec:
    """The study of oracle and null alone, with the stages that these two use and the gate's own seeds.

    Args:
        spec: Study with a gate.

    Raises:
        InputError: if it has none.
    """
    gate = spec.gate
    if gate is None:
        raise InputError(
            f"the study '{spec.name}' has no gate; write gate: {{oracle: ARM, null: ARM, seeds: [100, 101, 102, 103]}}"
        )
    arms = {name: spec.arms[name] for name in (gate.null, gate.oracle)}
    used = [stage for stage in spec.shared if any(stage in stages_used(spec, arm) for arm in arms)]
    unused = {stage.name for stage in spec.shared if stage not in used}
    return replace(
        spec,
        name=f"{spec.name}_gate",
        arms=arms,
        shared=used,
        share=[name for name in spec.share if name not in unused],
        baseline=gate.null,
        primary=[gate.oracle],
        contrasts=[],
        seeds=list(gate.seeds),
        gate=None,
    )


def gate_result(study: StudyNumbers) -> GateResult:
    """Holds the oracle against its null at the end of their runs.

    Args:
        study: Numbers of a study that `gate_study` made.
    """
    (oracle,) = study.spec.primary
    found = [each for each in compare(study).effects if (each.measure, each.arm) == ("end", oracle)]
    missing = float("nan")
    if not found:
        return GateResult(oracle, study.spec.baseline, Interval(), missing)
    (end,) = found
    return GateResult(oracle, study.spec.baseline, end.difference, end.error)


def require_gate(spec: StudySpec, root: Path) -> None:
    """Refuses a study whose gate was not run, or does not hold; one without a gate may run.

    Args:
        spec: Study that is to be run.
        root: Folder of the study, whose gate stands below it.

    Raises:
        InputError: with the result, or the command that runs the gate.
    """
    if spec.gate is None:
        return
    folder = gate_folder(root)
    if not (folder / SPEC).is_file():
        raise InputError(f"the study's gate was not run: '{folder}' holds no study; run study gate FILE first")
    results = StudyResults.read(folder)
    if results.spec != gate_study(spec) or not results.complete:
        raise InputError(f"'{folder}' holds another gate, or an unfinished one; run study gate FILE first")
    result = gate_result(read_numbers(results))
    if not result.holds:
        raise InputError(
            f"the {result.said}; a study there could tell no signals apart, so change its world or its budget"
        )
