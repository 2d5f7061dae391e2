"""Which shared stages an arm has to pay for, and what they must give it: the shipped studies, and specs worked by hand."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from saerl_lightning.files import read_mapping
from saerl_lightning.study.folder import resolve
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


# -- labels of the whole pool -------------------------------------------------------------------------------------------

NEED_ALL = (
    "MatchedFilter",
    "PermutedClusters",
    "LabelOrder",
)  # `tests/data/test_controls.py`: they refuse a pool with gaps
REFEREE = StudySpec.read(STUDIES / "referee.yaml")


@pytest.fixture(scope="module")
def referee():
    """The referee study's arms as `study run` parses them, those that name an operation of NEED_ALL, and the baseline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(STUDIES.parents[1])
        arms = {name: REFEREE.arms[name] for name in ("grpo", "oracle_order", "permuted_clusters", "matched_filter")}
        return resolve(replace(REFEREE, arms=arms, primary=[]), Path("runs/x"))


def named(config: object) -> set[str]:
    """The short names of all classes in a configuration."""
    if isinstance(config, list):
        return set().union(*map(named, config))
    if not isinstance(config, dict):
        return set()
    own = {str(config["class_path"]).rpartition(".")[2]} if config.get("class_path") else set()
    return own | named(list(config.values()))


def test_no_other_shipped_study_needs_a_label_of_every_prompt():
    """Else it belongs to one of the tests below."""
    overlays = {path.stem: path.read_text() for path in (STUDIES.parent / "ablate").glob("*.yaml")}
    demanding = {
        f"configs/ablate/{name}.yaml" for name, text in overlays.items() if any(each in text for each in NEED_ALL)
    }
    assert len(demanding) == 4
    found = set()
    for path in STUDIES.glob("*.yaml"):
        for name, arm in StudySpec.read(path).arms.items():
            if demanding & set(arm.configs) or any(each in " ".join(arm.flags) for each in NEED_ALL):
                found.add((path.stem, name))
    own = {("referee", name) for name in ("oracle_order", "permuted_clusters", "matched_filter")}
    assert found == own | {("world_skewed", "oracle"), ("world_skewed", "chance")}


def test_the_skewed_worlds_oracle_has_a_label_of_every_prompt_and_the_probes_have_five_hundred():
    spec = StudySpec.read(STUDIES / "world_skewed.yaml")
    asked = {each.makes: re.findall(r"--prompts=(\d+)", " ".join(each.run)) for each in spec.shared}
    parts = read_mapping(STUDIES.parent / "world/skewed.yaml", "a world")["data"]["init_args"]["train"]["init_args"]
    sizes = [part["init_args"]["size"] for part in parts["source"]["init_args"]["parts"].values()]
    assert (asked["labels-all.jsonl"], asked["labels.jsonl"]) == ([str(sum(sizes))], ["500"])
    for name, arm in spec.arms.items():
        words = " ".join([*spec.flags, *arm.flags])
        assert words.count("labels-all.jsonl") == (name in ("oracle", "chance")) and "{shared}/labels.jsonl" in words


@pytest.mark.parametrize("arm", ["oracle_order", "permuted_clusters", "matched_filter"])
def test_an_arm_that_matches_on_a_label_is_given_one_of_every_prompt(referee, arm):
    data = referee[arm]["data"]["init_args"]
    assert named(data) & set(NEED_ALL)
    pool = data["train"]["init_args"]["size"]
    (stage,) = [each for each in REFEREE.shared if data["labels"] == f"{{shared}}/{each.makes}"]
    asked = [re.search(r"--prompts=(\d+)", line) for line in stage.run]
    assert [int(found[1]) for found in asked if found] == [pool] == [4096]


def test_the_probes_of_an_arm_with_more_labels_learn_from_as_many_as_the_others(referee):
    (stage,) = [each for each in REFEREE.shared if each.makes == "labels.jsonl"]
    measured = int(re.search(r"--prompts=(\d+)", " ".join(stage.run))[1])
    for arm in ("permuted_clusters", "matched_filter"):
        curriculum = referee[arm]["data"]["init_args"]["curriculum"]
        assert named(curriculum) >= {"EasyToHard"} and curriculum["init_args"]["labels"] == measured == 512
