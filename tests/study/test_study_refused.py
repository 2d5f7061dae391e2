"""Studies that are refused before anything is made, and folders that belong to others."""

from pathlib import Path

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.study.folder import resolve
from saerl_lightning.study.results import StudyResults
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.tools.study import run_study
from tests.study.small_study import STUDY, FakeExecutor, run, spec_file, study

REFUSED = {
    "no seeds": ({"seeds": []}, r"no seeds; write a list, such as seeds: \[0, 1"),
    "a seed twice": ({"seeds": [1, 1]}, "seeds repeat 1"),
    "no arms": ({"arms": {}}, "no arms"),
    "unknown baseline": (
        {"baseline": "gpro"},
        "baseline names the arm 'gpro', which is not there; the arms are grpo, warm",
    ),
    "unknown primary": ({"primary": ["hot"]}, "primary names the arm 'hot'"),
    "the baseline as primary": ({"primary": ["grpo"]}, "primary names the baseline"),
    "unknown contrast": ({"primary": [], "contrasts": [["warm", "hot"]]}, "contrasts names the arm 'hot'"),
    "two families": (
        {"contrasts": [["warm", "grpo"]]},
        r"primary names warm and contrasts name 1 pairs; .* \[arm, grpo\] in",
    ),
    "an arm against itself": ({"primary": [], "contrasts": [["warm", "warm"]]}, "contrasts hold 'warm' against itself"),
    "a contrast twice": (
        {"primary": [], "contrasts": [["warm", "grpo"], ["grpo", "warm"]]},
        "contrasts compare 'grpo' and 'warm' twice",
    ),
    "three arms in a contrast": (
        {"contrasts": [["warm", "grpo", "a"]]},
        "a mistake at contrasts.0: tuple should have at",
    ),
    "no budget": ({"budget": {}}, "the budget says nothing; write one of steps: N and generated_tokens: N"),
    "an empty budget": ({"budget": {"steps": 0}}, "Budget.steps is 0; write a whole number from 1"),
    "two budgets": ({"budget": {"steps": 1, "generated_tokens": 1}}, "the budget says steps: 1, generated_tokens: 1"),
    "a missing key": ({"name": None}, "a mistake at name: is missing"),
    "a mistyped key": ({"seed": [1]}, "a mistake at seed: is no setting here"),
    "a text for a list": (
        {"arms": {"grpo": {"flags": "-x"}}},
        "arms.grpo.flags: input should be a valid list, seen '-x'",
    ),
    "a path for an arm": ({"arms": {"../x": {}}, "baseline": "../x"}, "arm '../x'"),
    "a stage outside": ({"shared": [{"name": "a", "makes": "../b", "run": []}]}, "write a path below"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_a_study_that_cannot_be_run_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        study(tmp_path, **changes)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="can't be read: No such file"):
        StudySpec.read(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is no YAML"):
        StudySpec.read(tmp_path / "bad.yaml")


def with_flags(*flags: str, **changes: object) -> dict:
    return {"arms": {"grpo": {}, "other": {"flags": list(flags)}}, "primary": ["other"], **changes}


UNRESOLVED = {
    "the same": (with_flags(), "the arms 'grpo' and 'other' resolve to the same configuration"),
    "the same in other words": (with_flags("--model.sampling.temperature=1"), "resolve to the same"),
    "no curve": (
        with_flags("--trainer.logger=WandbLogger"),
        "the arm 'other' logs to WandbLogger, and a study reads csv.*add others behind it",
    ),
    "other questions": (with_flags("--data.val=null"), "'other' changes the evaluation: data.init_args.val is None"),
    "other tests": (with_flags("--data.test=null"), "changes the evaluation: data.init_args.test is None"),
    "other samples": (
        with_flags("--data.val_sampling.group_size=4"),
        "changes the evaluation: data.init_args.val_sampling",
    ),
    "other times": (
        with_flags("--trainer.val_check_interval=46"),
        "trainer.val_check_interval is 46, and 23 in 'grpo'",
    ),
    "another grader": (
        with_flags("--model.rewards=[{class_path: MathReward}]"),
        r"model.init_args.rewards.0 grades it, and is .*MathReward.*a weight of 0",
    ),
    "a mistyped flag": (
        with_flags("--data.curiculum=null"),
        r"(?s)'other' does not parse: .*'curiculum' is not accepted; did you mean 'curriculum'\?$",
    ),
    "a flag of the study": (
        with_flags("--trainer.max_steps=3"),
        "'other' gives --trainer.max_steps, which the study sets",
    ),
    "many updates": (with_flags("--model.updates_per_batch=2"), "'other' takes 2 optimiser steps a batch"),
    "uneven": ({"budget": {"steps": 50}}, "50 is no multiple of trainer.val_check_interval 23: .*; write 46 or 69"),
    "shares of epochs": (
        {"flags": ["--trainer.val_check_interval=0.5"]},
        "val_check_interval is 0.5 .*a number of steps",
    ),
}


@pytest.mark.parametrize(("changes", "message"), UNRESOLVED.values(), ids=UNRESOLVED)
def test_arms_that_cannot_be_compared_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        resolve(study(tmp_path, **changes), tmp_path / "out")


def test_a_study_that_asks_what_it_trains_on_is_refused_before_anything_is_made(tmp_path):
    """The demo's tasks are small: without parts of their own, its sets repeat the training questions."""
    flags = ["--data.val.demo.part=null", "--data.train.part=null", "--data.train.size=400"]
    with pytest.raises(InputError, match=r"data.val.demo asks \d+ of its 280 questions that the arm 'grpo' trains on"):
        run(tmp_path, FakeExecutor(), flags=flags)
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, FakeExecutor(), flags=["--data.train.size=400"], arms={"grpo": {}}, primary=[]) == 0


# -- folders -----------------------------------------------------------------------------------------------------------


def test_the_folder_of_another_study_is_refused(tmp_path):
    run(tmp_path, FakeExecutor())
    with pytest.raises(
        InputError, match="is the folder of the study 'small', and this is 'other'; name another by --out"
    ):
        run(tmp_path, FakeExecutor(), name="other")
    changed = {**STUDY["arms"], "warm": {"flags": ["--model.sampling.temperature=1.3"]}}
    with pytest.raises(InputError, match=r"other settings of 'warm' .*delete .* or give the changed arm a new name"):
        run(tmp_path, FakeExecutor(), arms=changed)
    with pytest.raises(InputError, match="other settings of 'grpo', 'warm'"):
        run(tmp_path, FakeExecutor(), budget={"steps": 69})
    (tmp_path / "out/study.json").unlink()
    with pytest.raises(InputError, match="so it is no study's folder"):
        run(tmp_path, FakeExecutor())
    with pytest.raises(InputError, match=r"holds no study.yaml"):
        StudyResults.read(tmp_path)


def test_two_at_once_are_refused(tmp_path):
    path = spec_file(tmp_path)
    refused: list[str] = []

    def second(folder: Path) -> None:
        with pytest.raises(InputError, match=r"the study's folder .* is in use by process") as caught:
            run_study(StudySpec.read(path), path, tmp_path / "out", 1, FakeExecutor(steps=46))
        refused.append(str(caught.value))

    assert run(tmp_path, FakeExecutor(during=second), seeds=[0], arms={"grpo": {}}, primary=[]) == 0
    assert len(refused) == 1
