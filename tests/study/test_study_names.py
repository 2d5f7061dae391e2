"""What a study's file may not say: names that lead elsewhere, seeds that no generator takes, lines that no shell would."""

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.study.spec import StudySpec

GOOD = "name: s\nbase: []\narms: {a: {}, b: {}}\nseeds: [0]\nbudget: {steps: 3}\nbaseline: a\n"


def stage(line: str) -> str:
    return GOOD + f"shared: [{{name: cold, makes: cold, run: [{line!r}]}}]\n"


BOMB = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [{f'*{b}, ' * 99}]\n" for b, c in ("ab", "bc", "cd"))
REFUSED = {
    "a repeated 0": (GOOD.replace("[0]", "[0, 0]"), "seeds repeat 0"),
    "a seed below": (GOOD.replace("[0]", "[0, -1]"), "seeds is .*-1.*from 0 to 4294967295"),
    "a seed beyond": (GOOD.replace("[0]", f"[{10**30}]"), f"seeds is .*{10**30}"),
    "a name that leads out": (GOOD.replace("name: s", "name: ../../evil"), "name '../../evil': .*becomes part of a path"),
    "a name of a place": (GOOD.replace("name: s", "name: /etc"), "name '/etc'"),
    "no name": (GOOD.replace("name: s", "name: ''"), "name ''"),
    "a hidden name": (GOOD.replace("name: s", "name: .s"), "name '.s'"),
    "a name of two lines": (GOOD.replace("name: s", 'name: "a\\nb"'), "becomes part of a path"),
    "a long name": (GOOD.replace("name: s", f"name: {'s' * 300}"), "1 to 100 letters"),
    "an arm that leads out": (GOOD.replace("b: {}", "../evil: {}"), "arm '../evil'"),
    "an arm that is a flag": (GOOD.replace("b: {}", "'--x': {}"), "arm '--x'"),
    "an arm nearly right": (GOOD.replace("{a:", "{grpo:").replace("baseline: a", "baseline: gpro"), "did you mean 'grpo'"),
    "an open quote": (stage('main.py fit "x'), "shared stage 'cold' runs .*No closing quotation; close the quote"),
    "an empty line": (stage(" "), "shared stage 'cold' has an empty line"),
    "no line": (GOOD + "shared: [{name: cold, makes: cold, run: []}]", "shared stage 'cold' runs nothing"),
    "an unknown program": (stage("mian.py fit"), "runs 'mian.py', which is no program .* did you mean 'main.py'"),
    "a key twice": (GOOD + "name: t\n", "'.*study.yaml': line 7 has the key 'name' for the second time"),
    "UTF-16": (GOOD.encode("utf-16"), "is not UTF-8 text"),
    "a bomb": (BOMB, "100,000"),
    "nested": ("name: " + "[" * 9000, "nested deeper than 64"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), REFUSED.values(), ids=REFUSED)
def test_a_study_file_is_refused_in_one_line(tmp_path, text, says):
    file = tmp_path / "study.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=says) as refused:
        StudySpec.read(file)
    assert "\n" not in str(refused.value)


def test_a_flag_and_its_value_may_be_one_text(tmp_path):
    file = tmp_path / "study.yaml"
    own = "a: {flags: ['--data.curriculum null', '-c own.yaml', '--x=a b', '--bare', '--name', 'v']}"
    file.write_text(GOOD.replace("a: {}", own) + "flags: ['--data.filtering  {drop: 0.2}']\n")
    spec = StudySpec.read(file)
    assert spec.arms["a"].flags == ["--data.curriculum=null", "-c", "own.yaml", "--x=a b", "--bare", "--name", "v"]
    assert spec.flags == ["--data.filtering={drop: 0.2}"]


@pytest.mark.parametrize("line", ["saerl fit", "main.py fit", "python -m x", "sh -c 'echo {made}'", "{shared}/own.sh"])
def test_a_stage_runs_main_python_or_any_program_there_is(tmp_path, line):
    file = tmp_path / "study.yaml"
    file.write_text(GOOD + f'share: [cold]\nshared: [{{name: cold, makes: cold, run: ["{line}"]}}]\n')
    assert StudySpec.read(file).shared[0].run == [line]
