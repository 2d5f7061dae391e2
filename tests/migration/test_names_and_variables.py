"""Misspelt names are told from arguments that are not here; variables are named; references lead to arguments of the file."""

import json
from pathlib import Path

import pytest

from saerl_lightning.migration.conversion import convert, listing
from saerl_lightning.migration.references import followed
from saerl_lightning.migration.trl import TRL
from saerl_lightning.migration.verl import VERL

A, R = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
NEAR = {
    A + "kl_los_coef": f"did you mean {A}kl_loss_coef",
    R + "N": f"did you mean {R}n? verl 0.8 has no such argument",
    R + "gpu_memory_utilisation": f"did you mean {R}gpu_memory_utilization?",
    "critic.optim.learning_rate": "not here, because verl 0.8 has no such argument",
    "critic.optm.lr": "did you mean critic.optim.lr",
    "algoritm.adv_estimator": "did you mean algorithm.adv_estimator?",
    "data.total_epochs": "did you mean trainer.total_epochs?",
    "reward.custom_reward_function.pth": "did you mean reward.custom_reward_function.path?",
    "algorithm.filter_groups.enabled": "did you mean algorithm.filter_groups.enable?",
    "distillation.enable": "did you mean distillation.enabled?",
}


@pytest.mark.parametrize(("name", "said"), NEAR.items(), ids=NEAR)
def test_a_misspelt_name_of_verl_is_told_from_an_argument_that_is_not_here(name, said):
    draft = convert(VERL, {"trainer.resume_mode": "disable", name: 5})
    assert draft.lost[name].startswith(said)
    first = next(each for each in listing(draft).splitlines() if each.startswith("  "))
    assert first.startswith(f"  {name}: ")


def test_free_parts_have_no_misspelt_names():
    free = {
        R + "engine_kwargs.vllm.swap_space": 8,
        "ray_kwargs.ray_init.runtime_env.x": 1,
        A + "fsdp_config.mixed_precision": 1,
    }
    assert all("such argument" not in why for why in convert(VERL, free).lost.values())


def test_a_misspelt_name_of_trl_is_said_first():
    draft = convert(TRL, {"push_to_hub": True, "num_generation": 4, "Beta": 0.1})
    lines = [each for each in listing(draft).splitlines() if each.startswith("  ")]
    assert lines[0].startswith("  num_generation: did you mean num_generations") and lines[1].startswith(
        "  Beta: did you mean beta"
    )


def test_variables_are_named_and_never_carried():
    values = {
        "actor_rollout_ref.model.path": "$MODEL",
        "data.train_files": ["a.parquet", "${oc.env:HOME}/b.parquet"],
        "data.val_files": "${HOME_DIR}/c.parquet",
        "custom_reward_function.path": "mine.py",
        "custom_reward_function.reward_kwargs": {"url": "http://$HOST"},
        "data.train_batch_size": "$((N*2))",
        "trainer.total_epochs": "$1",
        "trainer.experiment_name": "run-`date`",
    }
    draft = convert(VERL, values)
    shown = {"$MODEL", "${oc.env:HOME}/b.parquet", "${HOME_DIR}/c.parquet", "http://$HOST", "$((N*2))", "$1"}
    shown.add("run-`date`")
    for text in shown:
        assert any(
            f"write its value in place of {text!r}" in why and "variables are not read" in why
            for why in draft.lost.values()
        )
    assert "names no" not in json.dumps(draft.lost)
    assert "--model.policy.path VALUE" in draft.lost["actor_rollout_ref.model.path"]
    assert "$" not in json.dumps([value for value, _ in draft.settings.values()])


def test_variables_in_files_of_trl_are_named_and_never_carried():
    draft = convert(
        TRL, {"model_name_or_path": "$MODEL", "dataset_name": "${DATA}/x", "chat_template_kwargs": {"a": "$A"}}
    )
    assert {"model_name_or_path", "dataset_name", "chat_template_kwargs"} <= draft.lost.keys()
    assert "'$MODEL'" in draft.lost["model_name_or_path"] and "$" not in json.dumps(
        [value for value, _ in draft.settings.values()]
    )
    carried = convert(TRL, {"model_name_or_path": "$HOME/model"}).settings["model.policy.path"][0]
    assert carried == str(Path.home() / "model")


@pytest.mark.parametrize(
    ("value", "leads_to"),
    [
        ("${data.seed}", 3),
        ("${oc.select:data.none,[1]}", [1]),
        ("${oc.select:data.none,${data.seed}}", 3),
        ("x/${data.seed}/${a.b}", "x/3/y"),
        ("${.b}", "y"),
        ("${..data.seed}", 3),
        ("${data.none}", "${data.none}"),
        ("${a.loop}", "${a.loop}"),
        (["${data.seed}"], [3]),
    ],
)
def test_references_lead_to_arguments_of_the_file(value, leads_to):
    assert followed(value, "a.c", {"data.seed": 3, "a.b": "y", "a.loop": "${a.loop}"}) == leads_to


def test_references_that_grow_or_lead_on_without_end_are_cut_off():
    grown = {f"a.{row}": f"${{a.{row + 1}}}" * 4 for row in range(40)}
    assert len(str(followed("${a.0}", "a.x", grown | {"a.40": "x"}))) < 10**5
    long = {f"a.{row}": f"${{a.{row + 1}}}" for row in range(5000)}
    assert str(followed("${a.0}", "a.x", long)).startswith("${a.")


def test_a_reference_on_the_way_is_relative_to_its_own_argument():
    assert followed("${b.first}", "a.c", {"b.first": "${.second}", "b.second": 4, "a.second": 5}) == 4
