"""Files of TRL and verl become configurations that our parser takes, with numbers worked out by hand."""

import contextlib
import dataclasses
import io
import re
from pathlib import Path

import pytest
import yaml

from saerl_lightning import cli
from saerl_lightning.errors import InputError
from saerl_lightning.migration.conversion import convert
from saerl_lightning.migration.page import table
from saerl_lightning.migration.trl import TRL
from saerl_lightning.migration.verl import VERL
from saerl_lightning.verbs.quick import answered

ROOT = Path(__file__).parents[2]
TRL_FULL = """
model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct
dtype: bfloat16
attn_implementation: flash_attention_2
dataset_name: open-r1/OpenR1-Math-220k
dataset_config: default
bf16: true
use_vllm: true
vllm_gpu_memory_utilization: 0.7
vllm_importance_sampling_mode: token_truncate
gradient_accumulation_steps: 4
per_device_train_batch_size: 16
num_generations: 16
learning_rate: 2e-05
lr_scheduler_type: cosine
warmup_ratio: 0.1
max_steps: 500
max_completion_length: 2048
temperature: 0.7
reward_funcs: [accuracy_reward, think_format_reward, get_soft_overlong_punishment]
reward_weights: [1.0, 0.5, 0.25]
report_to: [wandb]
beta: 0.04
epsilon_high: 0.28
mask_truncated_completions: true
save_steps: 100
save_total_limit: 1
push_to_hub: true
output_dir: runs/from-trl
log_completionss: true
"""
TRL_LORA = """{
"model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "dataset_name": "trl-lib/DeepMath-103K",
"use_peft": true, "lora_r": 8, "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": "3e-4",
"epsilon_high": 4e-4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 8,
"num_generations": 4, "num_train_epochs": 1, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5,
"eval_strategy": "steps", "eval_steps": 50, "reward_funcs": "accuracy_reward", "min_p": 0.1,
"chat_template_kwargs": {"enable_thinking": false}}
"""
VERL_SCRIPT = r"""
set -x
python3 -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_files=$HOME/data/gsm8k/train.parquet \
    data.val_files="['a/gsm8k.parquet','b/math.parquet']" \
    data.train_batch_size=1024 \
    data.max_response_length=1024 \
    actor_rollout_ref.model.path=Qwen/Qwen3-8B \
    actor_rollout_ref.actor.ppo_mini_batch_size=256 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32 \
    actor_rollout_ref.actor.use_kl_loss=True \
    +actor_rollout_ref.actor.kl_loss_type=low_var_kl \
    actor_rollout_ref.rollout.n=5 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
    trainer.logger='["console","wandb"]' \
    trainer.experiment_name=$NAME \
    trainer.save_freq=20 trainer.test_freq=5 \
    trainer.total_training_steps=50 $@
"""
VERL_NESTED = """
data: {train_files: math/train.parquet, train_batch_size: 512, max_response_length: 20480, train_max_samples: 9, seed: 3}
actor_rollout_ref:
  model: {path: Qwen/Qwen2.5-7B, lora_rank: 32}
  actor:
    ppo_mini_batch_size: 512
    clip_ratio_high: 0.28
    clip_ratio_c: 10.0
    loss_agg_mode: seq-mean-token-mean
    data_loader_seed: ${data.seed}
    optim: {_target_: verl.AdamW, lr: 1e-6, lr_warmup_steps: 10}
  rollout: {name: sglang, n: 16, val_kwargs: {n: 4, do_sample: true, temperature: 0.6, top_p: 0.95}}
algorithm: {norm_adv_by_std_in_grpo: false, adv_estimator: grpo, filter_groups: {enable: true, metric: acc}}
critic: {optim: {lr: 2e-5}}
reward_model: {overlong_buffer: {enable: true, len: 4096}}
trainer: {total_epochs: 2, logger: console}
"""
FILES = {
    "a full TRL file": (
        "trl",
        "args.yaml",
        TRL_FULL,
        {
            "model.sampling": {"group_size": 16, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_tokens": 2048},
            "model.updates_per_batch": 1,
            "model.objective.class_path": "DAPO",
            "model.objective.init_args.clip_low": 0.2,
            "model.objective.init_args.clip_high": 0.28,
            "model.objective.init_args.mask_truncated": True,
            "model.objective.init_args.kl": {"weight": 0.04, "estimator": "k3", "where": "loss"},
            "model.objective.init_args.correction": {"level": "token", "mode": "truncate", "cap": 3.0, "floor": None},
            "model.warmup_steps": 50,  # a tenth of 500
            "model.lr_scheduler.init_args.T_max": 500,
            "model.optimizer.init_args.lr": 2e-5,
            "data.batch_size": 8,  # 16 x 2 processes x 4 steps = 128 completions, 16 a prompt
            "trainer.max_steps": 500,
            "trainer.max_epochs": -1,
            "trainer.precision": "bf16-mixed",
        },
        ["dtype", "use_bias_correction_kl", "save_total_limit", "push_to_hub", "log_completionss"],
    ),
    "adapters and GSPO in TRL's JSON": (
        "trl",
        "args.json",
        TRL_LORA,
        {
            "model.policy.lora": {"rank": 8, "alpha": 32, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
            "model.objective.class_path": "GSPO",
            "model.objective.init_args.clip_low": 3e-4,
            "model.engine": {"class_path": "HFEngine"},
            "model.updates_per_batch": 1,  # 8 steps of a generation, 2 of an optimiser step: four parts, once each
            "data.batch_size": 8,  # 8 x 2 processes x 8 steps = 128 completions, 4 a prompt: 32 prompts, a part of 8
            "data.chat.options": {"enable_thinking": False},
            "trainer.val_check_interval": 50,  # optimiser steps, 1 a batch
            "model.lr_scheduler": None,
            "trainer.max_epochs": 1,
        },
        ["min_p"],
    ),
    "verl's script": (
        "verl",
        "run.sh",
        VERL_SCRIPT,
        {
            "data.train": str(Path.home() / "data/gsm8k/train.parquet"),
            "data.val": {"gsm8k": "a/gsm8k.parquet", "math": "b/math.parquet"},
            "data.batch_size": 256,  # a part of 1024 / 4
            "data.chat.max_prompt_tokens": 512,
            "model.updates_per_batch": 1,
            "trainer.devices": 1,  # the note has the flags for all
            "model.sampling.group_size": 5,
            "model.objective.class_path": "DAPO",
            "model.objective.init_args.dual_clip": 3.0,
            "model.objective.init_args.kl": {"weight": 0.001, "estimator": "k3", "where": "loss"},
            "data.val_sampling": {"group_size": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 1024},
            "trainer.max_steps": 200,  # verl counts sampled batches
            "checkpoint.every_n_train_steps": 80,
            "trainer.val_check_interval": 20,  # 5 of verl's batches, 4 parts each
        },
        ["trainer.experiment_name", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"],
    ),
    "verl's nested YAML": (
        "verl",
        "config.yaml",
        VERL_NESTED,
        {
            "data.train": {"class_path": "FilePrompts", "init_args": {"path": "math/train.parquet", "limit": 9}},
            "data.shuffle_seed": 3,
            "model.updates_per_batch": 1,
            "model.objective.class_path": "GRPO",
            "model.objective.init_args.scale_by_std": False,
            "model.objective.init_args.clip_high": 0.28,
            "model.micro_tokens": 20992,  # 512 + 20480
            "model.warmup_steps": 10,
            "model.dynamic_sampling": {"max_rounds": 10},
            "data.val_sampling": {"group_size": 4, "temperature": 0.6, "top_p": 0.95, "top_k": 0, "max_tokens": 20480},
        },
        [
            "actor_rollout_ref.actor.data_loader_seed",
            "actor_rollout_ref.rollout.name",
            "algorithm.filter_groups.metric",
            "critic.optim.lr",
        ],
    ),
}


def at(config, path: str):
    """The value at a path of our settings; `init_args` of module and data are passed over."""
    node = config
    for name in path.split("."):
        node = node.get("init_args", node) if name not in node else node
        node = node[name]
    return node


@pytest.mark.parametrize(("trainer", "name", "text", "ours", "lost"), FILES.values(), ids=FILES)
def test_a_file_becomes_a_configuration_that_the_parser_takes(
    tmp_path, monkeypatch, capsys, trainer, name, text, ours, lost
):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    answered(["import", trainer, name, "--out=mine.yaml", "--processes", "2"])
    said = capsys.readouterr().out
    for each in lost:
        assert re.search(rf"^  .*\b{re.escape(each)}\b.*: (not here|write|did you mean)", said, re.MULTILINE), said
    assert f"not carried ({len(lost)}):" in said
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli.run(["fit", "-c", "grpo.yaml", "-c", "mine.yaml", "--print_config"])
    parsed = yaml.safe_load(printed.getvalue())
    for written in (yaml.safe_load(Path("mine.yaml").read_text()), parsed):
        for path, value in ours.items():
            found = at(written, path)
            if isinstance(value, dict) and written is parsed:
                own = found.get("init_args", found)  # the parser adds the class of a slot that has a usual one
                found = {key: own[key] for key in value} if "class_path" not in value else value
            if path.endswith("class_path"):
                found = found.rpartition(".")[2]
            assert found == value, path


def test_every_argument_of_the_installed_trl_is_in_the_table_with_its_default():
    trl = pytest.importorskip("trl")
    from trl.scripts.grpo import GRPOScriptArguments

    known = {each.name: each.default for each in TRL.table}
    fields = [
        each for kind in (trl.GRPOConfig, trl.ModelConfig, GRPOScriptArguments) for each in dataclasses.fields(kind)
    ]
    assert not {each.name for each in fields} - known.keys()
    defaults = {each.name: each.default for each in fields if each.default is not dataclasses.MISSING}
    assert {name: known[name] for name in defaults} == defaults


@pytest.mark.parametrize("trainer", [TRL, VERL], ids=["trl", "verl"])
def test_the_page_has_the_table(trainer):
    page = (ROOT / "docs/coming_from.md").read_text()
    start, end = f"<!-- {trainer.title} -->\n", f"\n<!-- /{trainer.title} -->"
    assert page.partition(start)[2].partition(end)[0] == table(trainer), "run: make tree"


@pytest.mark.parametrize("trainer", [TRL, VERL], ids=["trl", "verl"])
def test_no_argument_stands_twice_and_each_has_a_counterpart_or_a_reason(trainer):
    names = [each.name for each in trainer.table]
    assert len(set(names)) == len(names)
    assert all(each.ours or each.how.startswith(("not here, because", "write ")) for each in trainer.table)
    assert all(trainer.find(each.name) is each for each in trainer.table if "*" not in each.name)


BAD = {
    "an unknown trainer": (["import", "trll", "a.yaml"], "'trll' is none of trl, verl; did you mean 'trl'"),
    "no YAML": (["import", "trl", "broken.yaml"], "the arguments 'broken.yaml' is no YAML"),
    "no such file": (["import", "verl", "none.yaml"], "'none.yaml' can't be read: No such file"),
    "an existing output": (["import", "trl", "a.yaml", "--out", "a.yaml"], "'a.yaml' exists and is not overwritten"),
    "no number": (["import", "trl", "a.yaml"], "num_generations is 'eight', which can't be converted; write a whole"),
    "no processes": (["import", "trl", "a.yaml", "--processes", "0"], "--processes is '0'; usage: "),
    "an unknown flag": (["import", "trl", "a.yaml", "--force"], "'--force' is not accepted"),
    "one argument": (["import", "trl"], "'import' has 1 arguments; usage"),
    "no argument in it": (["import", "verl", "empty.sh"], "the arguments 'empty.sh' hold none"),
}


@pytest.mark.parametrize(("args", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_and_nothing_is_written(tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("num_generations: eight\n")
    Path("broken.yaml").write_text("a: [1,\n")
    Path("empty.sh").write_text("set -x\n")
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=re.escape(says)):
        answered(args)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


UNFIT = {
    "a loss that there is not": ({"loss_type": "grop"}, "loss_type is 'grop'; write one of .*; did you mean 'grpo'"),
    "groups that do not fit the batch": ({"num_generations": 3}, "8 completions a batch .* num_generations 3"),
    "two sizes": ({"generation_batch_size": 8, "steps_per_generation": 1}, "both given"),
    "weights of other rewards": (
        {"reward_funcs": ["accuracy_reward"], "reward_weights": [1, 2]},
        "reward_weights has 2 numbers and reward_funcs 1",
    ),
    "a reward that TRL has not": (
        {"reward_funcs": ["accuracy_rewrad"]},
        "reward_funcs has 'accuracy_rewrad'.*; did you mean 'accuracy_reward'",
    ),
    "a scale": ({"scale_rewards": "std"}, "scale_rewards is 'std'"),
}


@pytest.mark.parametrize(("values", "says"), UNFIT.values(), ids=UNFIT)
def test_values_that_cannot_be_converted_are_named(values, says):
    with pytest.raises(InputError, match=says):
        convert(TRL, values)


@pytest.mark.parametrize(
    ("asked", "name"),
    [("grpo", "GRPO"), ("dr_grpo", "DrGRPO"), ("dapo", "DAPO"), ("bnpo", "BNPO"), ("cispo", "CISPO")],
)
def test_each_loss_of_trl_has_its_objective(asked, name):
    draft = convert(TRL, {"loss_type": asked, "epsilon_high": 5.0, "scale_rewards": asked != "dr_grpo"})
    assert draft.settings["model.objective"][0]["class_path"] == name
    assert not {"loss_type", "scale_rewards", "epsilon_high"} & draft.lost.keys()


def test_accumulated_generations_are_one_larger_batch():
    """Four samplings of 8 completions go into one optimiser step: 32 completions, 4 a prompt."""
    draft = convert(TRL, {"gradient_accumulation_steps": 4, "steps_per_generation": 1, "num_generations": 4})
    assert draft.settings["data.batch_size"][0] == 8 and draft.settings["model.updates_per_batch"][0] == 1


@pytest.mark.parametrize("trainer", [TRL, VERL], ids=["trl", "verl"])
@pytest.mark.parametrize("value", [None, "x", -1, {"a": [1]}], ids=str)
def test_any_value_of_any_argument_is_converted_or_refused_by_name(trainer, value):
    for argument in trainer.table:
        try:
            draft = convert(trainer, {"use_vllm": True, "use_peft": True, argument.name: value})
        except InputError as error:
            assert argument.name.rpartition(".")[2].removesuffix("*") in str(error)
        else:
            assert draft.settings


def test_what_has_no_counterpart_is_said_with_its_reason_and_the_default_is_not():
    draft = convert(TRL, {"loss_type": "sapo", "sapo_temperature_neg": 1.05, "sapo_temperature_pos": 2.0})
    assert draft.lost.keys() >= {"loss_type", "sapo_temperature_pos"} and "sapo_temperature_neg" not in draft.lost
    assert "algorithm.adv_estimator" in convert(VERL, {}).lost  # gae: no critic


def test_functions_of_the_users_own_are_carried_with_their_weights():
    values = {"reward_funcs": ["accuracy_reward", "mine.rewards.short"], "reward_weights": [1.0, 0.5]}
    first, second = convert(TRL, values).settings["model.rewards"][0]
    assert first["class_path"] == "MathReward"
    assert second == {"class_path": "FunctionReward", "init_args": {"function": "mine.rewards.short", "weight": 0.5}}
    draft = convert(VERL, {"custom_reward_function.path": "mine.py", "custom_reward_function.name": "score"})
    function = {"class_path": "FunctionReward", "init_args": {"function": "mine.py:score"}}
    assert draft.settings["model.rewards"][0] == [function]


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"vllm_server_host": "gpu-7", "vllm_server_port": 9000}, "http://gpu-7:9000"),
        ({}, "http://127.0.0.1:8000"),  # TRL's default host is every address, which nobody can ask
        ({"vllm_server_base_url": "https://all:1", "vllm_server_host": "gpu-7"}, "https://all:1"),
    ],
)
def test_a_server_of_trl_is_an_address_of_ours(given, url):
    draft = convert(TRL, {"use_vllm": True, "vllm_mode": "server", "num_generations": 8, **given})
    assert draft.settings["model.engine"][0] == {"class_path": "ServerEngine", "init_args": {"urls": [url]}}
    assert not {name for name in draft.lost if name.startswith("vllm")}
    assert any("command `serve`" in note for note in draft.notes)
