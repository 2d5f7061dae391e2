"""What studies have in common stands in a file that they include, and arms in the arm that they are like."""

from pathlib import Path

import pytest
import yaml

from saerl_lightning.errors import InputError
from saerl_lightning.study.folder import claim
from saerl_lightning.study.results import StudyResults
from saerl_lightning.study.spec import StudySpec

STUDY = """\
# Which is better?
# The second line of the comment.
name: s
include: common/tiny.yaml
arms:
  a: {}
  b: {configs: [b.yaml], flags: [--own=1, --lr=1]}
  c: {like: b, configs: [c.yaml], flags: [--lr=2]}
  d: {like: c, flags: [--own=3]}
seeds: [0]
budget: {steps: 3}
baseline: a
flags: [--study=1]
share: [order]
shared: [{name: own, makes: own, run: ["main.py fit {seed}"]}]
"""
COMMON = """\
base: [base.yaml]
flags: [--common=1]
share: [cold]
shared: [{name: cold, makes: cold, run: [main.py fit]}]
"""


def write(folder: Path, study: str = STUDY, common: str = COMMON) -> Path:
    (folder / "common").mkdir()
    (folder / "common/tiny.yaml").write_text(common)
    (folder / "study.yaml").write_text(study)
    return folder / "study.yaml"


def test_the_lists_of_an_included_file_stand_before_the_studys_own(tmp_path):
    spec = StudySpec.read(write(tmp_path))
    assert spec.base == ["base.yaml"]
    assert spec.flags == ["--common=1", "--study=1"] and spec.share == ["cold", "order"]
    assert [stage.name for stage in spec.shared] == ["cold", "own"]


def test_an_arm_continues_the_configs_and_flags_of_the_arm_that_it_is_like(tmp_path):
    arms = StudySpec.read(write(tmp_path)).arms
    assert (arms["c"].configs, arms["c"].flags) == (["b.yaml", "c.yaml"], ["--own=1", "--lr=1", "--lr=2"])
    assert (arms["d"].configs, arms["d"].flags) == (["b.yaml", "c.yaml"], ["--own=1", "--lr=1", "--lr=2", "--own=3"])
    assert arms["b"].flags == ["--own=1", "--lr=1"] and arms["a"].configs == []


def test_a_studys_folder_needs_no_other_file(tmp_path):
    source = write(tmp_path)
    spec, folder = StudySpec.read(source), tmp_path / "out"
    claim(spec, source, folder, {})
    assert StudyResults.read(folder).spec == spec
    text = (folder / "study.yaml").read_text()
    assert text.startswith("# Which is better?\n# The second line of the comment.\nname: s\n")
    assert "include" not in yaml.safe_load(text)


def test_a_study_without_an_include_is_recorded_as_it_is_written(tmp_path):
    source = write(tmp_path, STUDY.replace("include: common/tiny.yaml", "base:    [base.yaml]  # spaced"))
    claim(StudySpec.read(source), source, tmp_path / "out", {})
    assert (tmp_path / "out/study.yaml").read_text() == source.read_text()


BAD_STUDY = {
    "missing": ("common/none.yaml", r"the file that '.*study.yaml' includes, '.*none.yaml' can't be read: No such file"),
    "a folder": ("common", r"includes, '.*common' can't be read: Is a directory"),
    "itself": ("study.yaml", r"'.*study.yaml', has the key 'name'; write that in the study"),
    "elsewhere": ("../other.yaml", r"includes '../other.yaml'; write the path of one file beside it or below it"),
    "through the folder and out": ("common/../../other.yaml", "beside it or below it"),
    "absolute": ("/etc/passwd", "includes '/etc/passwd'; write the path of one file beside it or below it"),
    "a link that leads out": ("common/link.yaml", "beside it or below it"),
    "a list": ("[common/tiny.yaml]", r"includes \['common/tiny.yaml'\]; write the path of one file"),
    "null": ("null", "includes None; write the path of one file"),
    "empty": ("''", "can't be read: Is a directory"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "says"), BAD_STUDY.values(), ids=BAD_STUDY)
def test_a_file_that_can_not_be_included_is_refused_in_one_line(tmp_path, given, says):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "other.yaml").write_text(COMMON)
    source = write(inner, STUDY.replace("common/tiny.yaml", given))
    (inner / "common/link.yaml").symlink_to(tmp_path / "other.yaml")
    with pytest.raises(InputError, match=says) as refused:
        StudySpec.read(source)
    assert "\n" not in str(refused.value)


BAD_COMMON = {
    "an include of its own": ("include: study.yaml\n", "has the key 'include'; write that in the study, and base, flags"),
    "arms": ("arms: {e: {}}\n", "has the key 'arms'; write that in the study"),
    "a word for a list": ("flags: x\n", "has flags: 'x'; write a list"),
    "nothing": ("", "holds None; it is no mapping"),
    "a list": ("[a]\n", r"holds \['a'\]; it is no mapping"),
    "a key twice": ("flags: []\nflags: []\n", "line 2 has the key 'flags' for the second time"),
}  # fmt: skip


@pytest.mark.parametrize(("common", "says"), BAD_COMMON.values(), ids=BAD_COMMON)
def test_an_included_file_that_holds_anything_else_is_refused_in_one_line(tmp_path, common, says):
    with pytest.raises(InputError, match=f"the file that '.*study.yaml' includes, '.*tiny.yaml'.*{says}") as refused:
        StudySpec.read(write(tmp_path, common=common))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("like: c,", "like: e,", "arm 'd' is like 'e', which is no arm above it; those are a, b, c"),
        ("like: c,", "like: d,", "arm 'd' is like 'd', which is no arm above it"),
        ("  a: {}", "  a: {like: b}", "arm 'a' is like 'b', which is no arm above it; those are none"),
        ("like: c,", "like: [c],", r"mistake at arms.d.like: .*seen \['c'\]"),
        ("base: [base.yaml]", "base: [1]", r"the study '.*' has a mistake at base.0: .*seen 1"),
        ("flags: [--study=1]", "flags: x", "the study '.*' has a mistake at flags: .*seen 'x'"),
    ],
)
def test_a_wrong_value_in_either_file_is_refused_in_one_line(tmp_path, before, after, says):
    assert before in STUDY + COMMON
    with pytest.raises(InputError, match=says) as refused:
        StudySpec.read(write(tmp_path, STUDY.replace(before, after), COMMON.replace(before, after)))
    assert "\n" not in str(refused.value)


def test_a_study_is_found_beside_its_include_from_any_folder(tmp_path, monkeypatch):
    write(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert StudySpec.read("../study.yaml").base == ["base.yaml"]
