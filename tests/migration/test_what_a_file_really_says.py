"""Rewards, defaults, batches, GPUs and names of runs in real files, of verl 0.8.0 above all; nothing is passed over."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import yaml

from saerl_lightning import cli
from saerl_lightning.__main__ import answered
from saerl_lightning.migration.conversion import convert, listing
from saerl_lightning.migration.reading import dotted_arguments
from saerl_lightning.migration.references import followed
from saerl_lightning.migration.trl import TRL
from saerl_lightning.migration.verl import VERL

A, R = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
# Parts of the file that verl 0.8.0 composes of its own defaults, as it stands there.
COMPOSED = """
actor_rollout_ref:
  actor:
    _target_: verl.workers.config.FSDPActorConfig
    optim: {_target_: verl.workers.config.FSDPOptimizerConfig, lr: 1.0e-06, min_lr_ratio: 0.0, zero_indexed_step: true}
    fsdp_config: {wrap_policy: {min_num_params: 0}, param_offload: false, model_dtype: fp32, dtype: bfloat16}
    rollout_n: ${oc.select:actor_rollout_ref.rollout.n,1}
    checkpoint: {save_contents: [model, optimizer, extra], load_contents: '${.save_contents}', mbridge_config: {}}
    profiler: {tool: '${oc.select:global_profiler.tool,null}', ranks: [], tool_config: {npu: {level: level0}}}
    use_remove_padding: ${oc.select:actor_rollout_ref.model.use_remove_padding,false}
  ref: {strategy: '${actor_rollout_ref.actor.strategy}', router_replay: {mode: disabled}}
  rollout:
    name: ???
    n: 8
    tensor_model_parallel_size: 2
    max_num_seqs: 1024
    prompt_length: ${oc.select:data.max_prompt_length,512}
    mtp: ${oc.select:actor_rollout_ref.model.mtp, null}
    prometheus: {served_model_name: '${oc.select:actor_rollout_ref.model.path,null}'}
  model: {path: ~/models/deepseek-llm-7b-chat, use_remove_padding: true, mtp: {enable: false}}
data:
  train_files: ~/data/rlhf/gsm8k/train.parquet
  filter_overlong_prompts: false
  return_raw_input_ids: false
  max_prompt_length: 512
critic: {optim: {lr: 1.0e-05}, rollout_n: '${oc.select:actor_rollout_ref.rollout.n,1}', ppo_max_token_len_per_gpu: 32768}
custom_reward_function: {path: null, name: null}
reward_model: {num_workers: null, reward_manager: null, enable: null, model: {path: null}}
sandbox_fusion: {url: null}
reward:
  num_workers: 8
  custom_reward_function: {path: null, name: compute_score}
  reward_manager: {_target_: verl.workers.config.reward.RewardManagerConfig, source: register, name: naive}
  reward_model: {enable: false, rollout: {name: '???', tensor_model_parallel_size: 2}}
algorithm: {adv_estimator: grpo, rollout_correction: {loss_type: ppo_clip}, pf_ppo: {weight_pow: 2.0}}
distillation: {enabled: false, distillation_loss: {topk: 32}}
trainer: {experiment_name: gsm8k, default_local_dir: 'checkpoints/${trainer.project_name}/${trainer.experiment_name}'}
global_profiler: {save_path: outputs/profile, global_tool_config: {nsys: {discrete: false}}}
transfer_queue: {backend: {SimpleStorage: {total_storage_size: 100000}}}
ray_kwargs: {ray_init: {num_cpus: null}}
hydra: {run: {dir: outputs/x}, job: {name: main_ppo}}
"""


def of_verl(tmp_path: Path, text: str):
    """Converts a file of verl."""
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return convert(VERL, dotted_arguments(str(file)))


def test_a_composed_file_of_defaults_loses_none_of_them(tmp_path):
    draft = of_verl(tmp_path, COMPOSED)
    assert draft.lost == {}
    assert draft.settings["model.engine"][0]["class_path"] == "VLLMEngine"  # ??? is no value
    assert draft.settings["model.sampling.group_size"][0] == 8
    assert "run_dir" not in draft.settings


def test_no_default_of_verl_counts_as_a_change():
    assert len(VERL.defaults) > 1000
    first = {name: each[0] for name, each in VERL.defaults.items() if each[0] != "???"}
    resolved = {name: followed(value, name, first) for name, value in first.items()}
    assert convert(VERL, first).lost.keys() == convert(VERL, resolved).lost.keys() == {"algorithm.adv_estimator"}
    for name, value in {  # by hand, from verl 0.8.0
        R + "max_num_seqs": 1024,
        R + "tensor_model_parallel_size": 2,
        A + "ppo_mini_batch_size": 256,
        "data.filter_overlong_prompts": False,
        "reward.num_workers": 8,
        "distillation.distillation_loss.loss_mode": "k3",
    }.items():
        assert first[name] == value
    tabled = {each.name: each.default for each in VERL.table if each.name in first and not each.ours}
    assert {name for name, value in tabled.items() if value not in (None, *VERL.defaults[name])} <= {
        A + "use_fused_kernels",  # that refer to others
        A + "use_remove_padding",
    }


def test_changes_of_a_part_that_ours_lacks_are_told_in_one_line(tmp_path):
    critic = "critic: {optim: {lr: 3.0e-05}, ppo_epochs: 7, shuffle: true, strategy: fsdp2, grad_clip: 1.0}"
    said = listing(of_verl(tmp_path, f"{critic}\ndistillation: {{enabled: true}}\nalgorithm: {{adv_estimator: grpo}}"))
    assert "  critic.* (optim.lr, ppo_epochs, shuffle and 1 more): not here, because there is no critic\n" in said
    assert re.search(r"^  distillation.enabled: not here, because there is no teacher", said, re.MULTILINE)
    assert "not carried (7)" in said  # no model and no data set


FUNCTION = {"class_path": "FunctionReward", "init_args": {"function": "mine.py:score", "arguments": {"bonus": 0.1}}}


@pytest.mark.parametrize("above", ["reward.", ""], ids=["0.8", "before"])
def test_the_function_is_carried_with_its_arguments_and_its_workers(tmp_path, above):
    (tmp_path / "overrides.txt").write_text(
        f"{above}custom_reward_function.path=mine.py\n{above}custom_reward_function.name=score\n"
        f"+{above}custom_reward_function.reward_kwargs.bonus=0.1\nalgorithm.adv_estimator=grpo\n"
        f"{'reward.' if above else 'reward_model.'}num_workers=3\n"
        f"{'reward.reward_manager.name' if above else 'reward_model.reward_manager'}=dapo\n"
    )
    draft = convert(VERL, dotted_arguments(str(tmp_path / "overrides.txt")))
    wanted = {**FUNCTION, "init_args": {**FUNCTION["init_args"], "workers": 3}}
    assert draft.settings["model.rewards"][0] == [wanted]
    assert draft.lost.keys() == {"actor_rollout_ref.model.path", "data.train_files"} and draft.other_reward == ""


@pytest.mark.parametrize("place", ["pkg://mine.rewards", "pkg://mine/rewards"])
def test_a_module_of_functions_is_named_as_here(place):
    values = {"reward.custom_reward_function.path": place, "reward.custom_reward_function.name": "score"}
    [reward] = convert(VERL, values).settings["model.rewards"][0]
    assert reward["init_args"] == {"function": "mine.rewards:score"}


def test_a_file_with_a_function_is_a_configuration_that_the_parser_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def score(solution_str, bonus, **more):\n    return bonus\n")
    Path("overrides.txt").write_text(
        "reward.custom_reward_function.path=mine.py\nreward.custom_reward_function.name=score\n"
        "+reward.custom_reward_function.reward_kwargs.bonus=0.1\ntrainer.experiment_name=run1\ntrainer.project_name=p\n"
        "algorithm.adv_estimator=grpo\ntrainer.logger=[wandb]\ndata.train_batch_size=64\n"
        "actor_rollout_ref.actor.ppo_mini_batch_size=16\n"
    )
    answered(["import", "verl", "overrides.txt", "--out", "mine.yaml"])
    assert yaml.safe_load(Path("mine.yaml").read_text())["trainer"]["logger+"]["init_args"]["name"] == "run1"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.run(["fit", "-c", "grpo.yaml", "-c", "mine.yaml", "--print_config"])
    [reward] = yaml.safe_load(printed.getvalue())["model"]["init_args"]["rewards"]
    assert reward["init_args"]["arguments"] == {"bonus": 0.1}


OTHER = {
    "none named": ({}, "the file names no function"),
    "a variable": ({"custom_reward_function.path": "$CODE/mine.py"}, "custom_reward_function.path could not be read"),
    "a variable in its name": (
        {"reward.custom_reward_function.path": "mine.py", "reward.custom_reward_function.name": "${FN}"},
        "reward.custom_reward_function.name could not be read",
    ),
    "a misspelt name": (
        {"custom_reward_function.path": "mine.py", "custom_reward_function.nam": "score"},
        "custom_reward_function.nam could not be read",
    ),
    "lists at a time": (
        {"custom_reward_function.path": "mine.py", "reward_model.reward_manager": "batch"},
        "reward_model.reward_manager is batch, which does not grade each completion by itself",
    ),
    "a manager of one's own": (
        {"reward.reward_manager.source": "importlib", "reward.reward_manager.name": "Mine"},
        "reward.reward_manager.source is importlib, a reward manager of your own",
    ),
    "no model": (
        {"reward.reward_model.enable": True},
        "reward.reward_model.enable is true, and the file names no model",
    ),
}


@pytest.mark.parametrize(("values", "why"), OTHER.values(), ids=OTHER)
def test_another_reward_than_the_files_is_said_on_a_line_of_its_own(values, why):
    draft = convert(VERL, values)
    first = listing(draft).splitlines()[0]
    assert first.startswith(f"reward not carried: {why}") and first.endswith("MathReward stands in its place")
    assert draft.settings["model.rewards"][0] == [{"class_path": "MathReward"}]
    assert "# in place of verl's reward" in draft.yaml("")


def test_another_reward_than_that_of_trl_is_said_too():
    draft = convert(TRL, {"reward_weights": [2.0]})
    assert listing(draft).startswith("reward not carried: the file names none by reward_funcs; write model.rewards")
    draft = convert(TRL, {"reward_funcs": ["accuracy_reward", "$MINE.score"]})
    assert listing(draft).startswith("reward not carried: reward_funcs could not be read, see below")
    assert "'$MINE.score'" in draft.lost["reward_funcs"]


def test_reward_models_are_carried():
    draft = convert(
        TRL, {"reward_model_name_or_path": "a/b", "reward_funcs": ["accuracy_reward"], "reward_weights": [2, 1]}
    )
    model = {"class_path": "ModelReward", "init_args": {"path": "a/b", "weight": 2.0}}
    assert draft.settings["model.rewards"][0] == [model, {"class_path": "MathReward", "init_args": {"weight": 1.0}}]
    draft = convert(VERL, {"reward.reward_model.enable": True, "reward.reward_model.model_path": "a/b"})
    assert draft.settings["model.rewards"][0] == [{"class_path": "ModelReward", "init_args": {"path": "a/b"}}]
    assert draft.other_reward == ""


def test_the_penalty_of_long_completions_is_carried_from_where_0_8_has_it():
    above = "reward.reward_kwargs."
    buffer = {f"{above}overlong_buffer_cfg.{name}": value for name, value in (("enable", True), ("len", 256))}
    values = {"custom_reward_function.path": "mine.py", **buffer, f"{above}max_resp_len": 1024}
    length = convert(VERL, values).settings["model.rewards"][0][1]
    assert length == {"class_path": "LengthReward", "init_args": {"max_tokens": 1024, "buffer": 256, "weight": 1.0}}


def test_several_gpus_are_one_note_and_the_file_asks_for_what_its_engine_takes():
    draft = convert(VERL, {"trainer.n_gpus_per_node": 8, "trainer.nnodes": 2})
    [note] = [each for each in draft.notes if "GPUs" in each]
    assert note.startswith("16 GPUs: the file says trainer.devices: 1, to be tried on one; for all")
    assert "--trainer.devices 8 --trainer.strategy ddp --trainer.num_nodes 2." in note
    assert "--trainer.strategy sharded shares it out" in note and draft.settings["trainer.devices"][0] == 1
    assert not {"trainer.n_gpus_per_node", "trainer.nnodes"} & draft.lost.keys()
    draft = convert(VERL, {R + "name": "hf", "data.train_batch_size": 12, "trainer.n_gpus_per_node": 8})
    [note] = [each for each in draft.notes if "GPUs" in each]
    assert note.startswith("8 GPUs: for all of them --trainer.devices 8 --trainer.strategy ddp. Each holds")
    assert note.endswith("data.batch_size 12 must be a multiple of 8") and "trainer.devices" not in draft.settings


def test_several_processes_of_trl_are_the_same_note():
    draft = convert(TRL, {"use_vllm": True}, processes=4)
    assert any(each.startswith("4 GPUs: the file says trainer.devices: 1") for each in draft.notes)
    assert draft.settings["trainer.devices"][0] == 1
    draft = convert(TRL, {}, processes=1)
    assert not any("GPUs" in each for each in draft.notes) and "trainer.devices" not in draft.settings


def test_parts_of_a_batch_become_batches_and_the_choice_stands_beside_them():
    """64 prompts in 4 parts of 16, each used twice: 8 steps; here 4 batches with 2 steps, or 1 batch with 8."""
    values = {"data.train_batch_size": 64, A + "ppo_mini_batch_size": 16, A + "ppo_epochs": 2, "trainer.test_freq": 3}
    draft = convert(VERL, values | {"trainer.save_freq": 5, "trainer.total_training_steps": 10})
    found = {path: value for path, (value, _) in draft.settings.items()}
    assert (found["data.batch_size"], found["model.updates_per_batch"]) == (16, 2)
    assert (found["trainer.val_check_interval"], found["checkpoint.every_n_train_steps"]) == (12, 40)
    assert found["trainer.max_steps"] == 80
    written = draft.yaml("")
    assert "    #   --data.batch_size 16 --model.updates_per_batch 2 --trainer.val_check_interval 12\n" in written
    assert "    #   --data.batch_size 64 --model.updates_per_batch 8 --trainer.val_check_interval 3\n" in written


def test_a_part_that_is_no_whole_number_of_prompts_stays_one_batch():
    """8 completions, 4 a prompt, in 4 steps of 2: half a prompt each."""
    draft = convert(TRL, {"per_device_train_batch_size": 2, "steps_per_generation": 4, "num_generations": 4})
    assert (draft.settings["data.batch_size"][0], draft.settings["model.updates_per_batch"][0]) == (2, 4)
    assert any("--data.batch_size 2 --model.updates_per_batch 4" in note for note in draft.notes)


def test_the_name_of_a_run_goes_to_the_logger_that_has_names():
    draft = convert(VERL, {"trainer.experiment_name": "mine", "trainer.project_name": "p", "trainer.logger": ["wandb"]})
    logger = draft.settings["trainer.logger+"][0]["init_args"]
    assert (logger["name"], logger["project"]) == ("mine", "p") and "trainer.experiment_name" not in draft.lost
    assert (
        "--run_dir"
        in convert(VERL, {"trainer.experiment_name": "mine", "trainer.logger": ["console"]}).lost[
            "trainer.experiment_name"
        ]
    )
    assert (
        convert(TRL, {"run_name": "mine", "report_to": ["wandb"]}).settings["trainer.logger+"][0]["init_args"]["name"]
        == "mine"
    )
    assert "run_name" in convert(TRL, {"run_name": "mine"}).lost


@pytest.mark.parametrize("trainer", [TRL, VERL], ids=["trl", "verl"])
def test_the_page_lists_what_the_other_trainer_can_do_and_ours_can_not(trainer):
    page = (Path(__file__).parents[2] / "docs/coming_from.md").read_text()
    above = page.partition(f"\n## {trainer.title}\n")[2].partition(f"<!-- {trainer.title} -->")[0]
    said = above.partition("### What it can do that this cannot\n")[2]
    lines = [line for line in said.splitlines() if line.startswith("- ")]
    assert len(lines) == 10
    for line in lines:
        named = re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9*]+)*)`", line.partition("(")[2])
        assert named and all(trainer.find(each) is not None for each in named), line
