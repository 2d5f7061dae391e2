"""The gate: what it runs, its verdict by numbers worked by hand, and the refusal of a study whose world decides nothing."""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import yaml

from saerl_lightning.errors import InputError
from saerl_lightning.study.gate import gate_result, gate_study, require_gate
from saerl_lightning.study.include import written_out
from saerl_lightning.study.report.numbers import read_numbers
from saerl_lightning.study.results import StudyResults
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.tools import study as tool
from tests.study.small_study import STUDY, FakeExecutor, log_steps, spec_file, study
from tests.study.synthetic_study import Arm, write_study

GATE = {"oracle": "warm", "null": "grpo", "seeds": [100, 101]}
HOLDS, FAILS = [[0.2, 0.30], [0.2, 0.31]], [[0.2, 0.30], [0.2, 0.25]]
NULL = [[0.2, 0.20], [0.2, 0.25]]


def judged(folder: Path, oracle: list) -> object:
    root = write_study(folder, {"null": Arm(NULL), "oracle": Arm(oracle)}, ["oracle"])
    return gate_result(read_numbers(StudyResults.read(root)))


def test_the_verdict_by_hand(tmp_path):
    """Differences .10 and .06: mean .08, error .02, four errors. Differences .10 and .00: mean .05, error .05, one error."""
    holds, fails = judged(tmp_path / "a", HOLDS), judged(tmp_path / "b", FAILS)
    assert (holds.difference.value, holds.error, holds.holds) == (pytest.approx(0.08), pytest.approx(0.02), True)
    assert (fails.difference.value, fails.error, fails.holds) == (pytest.approx(0.05), pytest.approx(0.05), False)
    assert holds.said.startswith(
        "gate holds: oracle ends +0.080 from null (95 % interval -0.174 to +0.334), 4.0 standard"
    )
    same = judged(tmp_path / "c", NULL)
    assert not same.holds and "no two finished pairs" in same.said


def test_a_gate_is_the_study_of_two_arms_on_seeds_of_its_own(tmp_path):
    whole = study(tmp_path, gate=GATE)
    own = gate_study(whole)
    assert (own.name, [*own.arms], own.baseline, own.primary) == ("small_gate", ["grpo", "warm"], "grpo", ["warm"])
    assert (own.seeds, own.budget, own.base) == ([100, 101], whole.budget, whole.base)
    assert StudySpec.of(yaml.safe_load(yaml.safe_dump(asdict(own))), "gate.yaml") == own
    stage = {"name": "cold start", "makes": "cold", "run": ["cp {seed} {made}"]}
    idle = {"name": "SAE", "makes": "sae", "run": ["cp {seed} {made}"]}
    more = {"shared": [stage, idle], "flags": ["--model.policy.path={shared}/cold"], "share": ["cold start", "SAE"]}
    staged = gate_study(study(tmp_path, gate=GATE, **more))
    assert ([each.name for each in staged.shared], staged.share) == (["cold start"], ["cold start"])
    with pytest.raises(InputError, match="the study 'small' has no gate; write gate: "):
        gate_study(study(tmp_path))


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({**GATE, "oracle": "wram"}, r"gate.oracle names the arm 'wram', which is not there; .* did you mean"),
        ({**GATE, "null": "warm"}, "gate.oracle and gate.null are both 'warm'"),
        ({**GATE, "seeds": [7, 1]}, "gate.seeds and seeds have 1 in common"),
        ({**GATE, "seeds": [7]}, r"gate.seeds are \[7\]; write two different seeds or more"),
        ({**GATE, "seeds": [7, 7]}, "write two different seeds or more"),
        ({**GATE, "errors": 2}, "gate.errors: is no setting here"),
    ],
)
def test_a_gate_that_decides_nothing_is_refused(tmp_path, gate, said):
    with pytest.raises(InputError, match=said):
        study(tmp_path, gate=gate)


@dataclass
class Unequal(FakeExecutor):
    """The oracle ends above its null by .10 and by `second`."""

    second: float = 0.06

    def run(self, command, environment, log) -> int:
        ends = {"grpo-100": 0.2, "grpo-101": 0.25, "warm-100": 0.3, "warm-101": 0.25 + self.second}
        arm, seed = log.parents[1].name, log.parent.name.removeprefix("seed-")
        self.ran.append(f"{arm}-{seed}")
        log_steps(log.parent, self.steps)
        rows = log.parent / "csv" / "version_0" / "metrics.csv"
        end = ends.get(f"{arm}-{seed}", 0.4)
        rows.write_text(rows.read_text().replace(f"{self.steps - 1},,,,,0.5", f"{self.steps - 1},,,,,{end}"))
        return 0


def test_a_study_is_run_only_behind_its_gate(tmp_path, monkeypatch, capsys):
    path, out, ran = spec_file(tmp_path, gate=GATE), tmp_path / "out", []

    def gate(second: float, out: Path) -> None:
        class Here(Unequal):
            def __init__(self, gpus: int) -> None:
                super().__init__(second=second, ran=ran)

        monkeypatch.setattr(tool, "SubprocessExecutor", Here)
        tool.gate(str(path), str(out))

    def whole() -> int:
        return tool.run_study(StudySpec.read(path), path, out, 1, Unequal(ran=ran))

    with pytest.raises(InputError, match="the study's gate was not run"):
        whole()
    with pytest.raises(SystemExit):
        gate(0.0, out)
    assert "gate does not hold: warm ends +0.050 from grpo" in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"gate does not hold: .* 1.0 standard errors, and 3 are asked for; a study there"
    ):
        whole()
    assert sorted(ran) == ["grpo-100", "grpo-101", "warm-100", "warm-101"] and not out.exists()

    again = tmp_path / "again"
    gate(0.06, again)
    assert "gate holds: warm ends +0.080 from grpo" in capsys.readouterr().out
    assert tool.run_study(StudySpec.read(path), path, again, 1, Unequal(ran=ran)) == 0
    assert StudyResults.read(again).complete
    require_gate(study(tmp_path, gate=GATE), again)
    with pytest.raises(InputError, match="another gate, or an unfinished one"):
        require_gate(replace(study(tmp_path, gate={**GATE, "seeds": [100, 102]})), again)
    require_gate(study(tmp_path), tmp_path / "anywhere")  # no gate is asked for


def test_a_gate_is_read_as_the_page_and_the_message_write_it(tmp_path):
    """In YAML a bare `null` is no text: the gate's key was refused as it is printed, and so was an arm of that name."""
    arms = yaml.safe_dump({**STUDY, "arms": {"grpo": {}, "warm": {}}})
    file = tmp_path / "small.yaml"
    file.write_text(arms + "gate: {oracle: warm, null: grpo, seeds: [100, 101]}\n")
    gate = StudySpec.read(file).gate
    assert gate is not None and (gate.oracle, gate.null, gate.seeds) == ("warm", "grpo", [100, 101])
    file.write_text("arms: {null: {}, warm: {}}")
    assert written_out(file) == {"arms": {"null": {}, "warm": {}}}
    page = (Path(__file__).parents[2] / "docs/howto/study.md").read_text()
    assert re.search(r"^gate: \{oracle: \w+, null: \w+, seeds: ", page, re.MULTILINE)
