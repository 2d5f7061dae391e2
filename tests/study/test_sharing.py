"""Which shared stages an arm has to pay for: the shipped studies, and specs worked by hand."""

from pathlib import Path

import pytest

from saerl_lightning.study.spec import Arm, Budget, Stage, StudySpec
from saerl_lightning.study.stages import stages_used

STUDIES = Path(__file__).parents[2] / "configs" / "study"
SAERL = {"cold", "sae", "labels.jsonl", "signals"}


def made_for(spec, arm):
    return {stage.makes for stage in stages_used(spec, arm)}


@pytest.mark.parametrize(
    ("study", "arm", "makes"),
    [
        ("demo", "grpo", {"cold"}),  # reads neither labels nor features, though the flags of all arms name their places
        ("demo", "saerl", SAERL),
        ("demo", "random", {"cold", "labels.jsonl"}),
        ("referee", "grpo", {"cold"}),
        ("referee", "random_reward", {"cold"}),
        ("referee", "saerl", SAERL),
        ("referee", "shuffled_signals", SAERL),
        ("referee", "hidden", {"cold", "labels.jsonl"}),
        ("referee", "frozen_random_sae", {"cold", "sae-frozen", "labels.jsonl"}),
        ("referee", "oracle_order", {"cold", "sae", "labels-all.jsonl", "signals"}),
        ("operations", "no_filtering", SAERL),
        ("dose", "saerl", SAERL),
        ("algorithms", "dapo", {"cold"}),
        ("transfer", "grpo", {"cold"}),
        ("transfer", "saerl", SAERL),
        ("paper_1.5b", "grpo", set()),
        ("paper_1.5b", "saerl", {"sae", "signals"}),
        ("paper_1.5b", "hidden", set()),
    ],
)
def test_an_arm_of_a_shipped_study_pays_for_what_it_reads(study, arm, makes):
    assert made_for(StudySpec.read(STUDIES / f"{study}.yaml"), arm) == makes


def spec_of(flags, stages, shared_flags=()):
    return StudySpec(
        name="s",
        base=["base.yaml"],
        arms={"a": Arm(flags=list(flags))},
        seeds=[0],
        budget=Budget(steps=1),
        baseline="a",
        shared=stages,
        flags=list(shared_flags),
    )


def test_a_stage_brings_those_that_it_needed_itself():
    stages = [
        Stage("sae", "sae", ["main.py fit --run_dir {made}"]),
        Stage("labels", "labels.jsonl", ["main.py label --sae {shared}/sae --out {made}"]),
        Stage("other", "sae-2", ["main.py fit"]),
    ]
    assert made_for(spec_of(["--data.labels", "{shared}/labels.jsonl"], stages), "a") == {"sae", "labels.jsonl"}
    assert made_for(spec_of(["--x={shared}/sae-2/weights"], stages), "a") == {"sae-2"}
    assert made_for(spec_of(["--x={shared}/sae-20", "--y=sae"], stages), "a") == set()


def test_the_last_of_two_equal_flags_counts_and_what_is_added_stays():
    stages = [Stage("one", "one", ["x"]), Stage("two", "two", ["x"])]
    assert made_for(spec_of(["--a={shared}/two"], stages, ["--a={shared}/one"]), "a") == {"two"}
    assert made_for(spec_of(["--a+={shared}/two"], stages, ["--a+={shared}/one"]), "a") == {"one", "two"}
    assert made_for(spec_of(["-c", "{shared}/two"], stages, ["-c", "{shared}/one"]), "a") == {"one", "two"}
