"""A plan that was exported is served in its order by the trainer it was exported for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import yaml

from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.plan_page.ledger import Ledger
from saerl_lightning.plan_page.other_trainers import export_plan, require_export
from saerl_lightning.plan_page.planned import MadePlan
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.file import FilePrompts
from saerl_lightning.records import Prompt

ORDER = [5, 2, 8, 0, 7, 3, 1]  # of ten prompts; the last one fills no batch of two
SERVED = [5, 2, 8, 0, 7, 3]
CHAT = ChatTemplate(system="Answer with a number.", max_prompt_tokens=96)


def a_run(**changed) -> MadePlan:
    """Ten prompts, of which seven are planned in an order of their own and six are served."""
    prompts = [
        Prompt.asking(f"p{i}", f"What is {i} + {i}?", str(2 * i), source="sums", labels={"level": i / 2})
        for i in range(10)
    ]
    prompts[2] = replace(prompts[2], **changed)
    plan = replace(SamplePlan.sequential(10, 2), rows=np.array(ORDER), dropped=dict.fromkeys((4, 6, 9), "too easy"))
    return MadePlan(prompts, plan, "digest")


def exported(folder: Path, trainer: str) -> list[str]:
    return export_plan(folder / "out", trainer, a_run(), CHAT, 4)


def test_beside_the_prompts_stand_the_ledger_and_the_settings(tmp_path):
    settings = exported(tmp_path, "verl")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "ledger.parquet", "settings.txt", "train.parquet",
    ]  # fmt: skip
    assert (tmp_path / "out/settings.txt").read_text().splitlines() == settings
    assert Ledger.read(tmp_path / "out/ledger.parquet").batch.tolist() == [1, -1, 0, 2, -1, 0, -1, 2, 1, -1]


def test_verl_reads_its_columns_in_the_order_of_the_plan(tmp_path):
    settings = exported(tmp_path, "verl")
    rows = parquet.read_table(tmp_path / "out/train.parquet").to_pylist()
    assert rows[1] == {
        "data_source": "sums",
        "prompt": [
            {"role": "system", "content": "Answer with a number."},
            {"role": "user", "content": "What is 2 + 2?"},
        ],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {
            "index": 2, "split": "train", "uid": "p2", "source": "sums", "topic": "", "grading": "", "batch": 0,
            "level": 1.0,
        },
    }  # fmt: skip
    assert [row["extra_info"]["index"] for row in rows] == SERVED
    assert settings == [
        f"data.train_files={tmp_path / 'out/train.parquet'}",
        "data.shuffle=False",
        "data.train_batch_size=2",
        "actor_rollout_ref.rollout.n=4",
        "data.filter_overlong_prompts=False",
        "data.max_prompt_length=96",
    ]


def test_the_first_shuffle_of_open_instruct_puts_its_rows_into_the_order_of_the_plan(tmp_path):
    settings = exported(tmp_path, "open-instruct")
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    shuffled = torch.randperm(6, generator=torch.Generator().manual_seed(1)).numpy()  # as its loader does at epoch 0
    assert [rows[place]["uid"] for place in shuffled] == [f"p{row}" for row in SERVED]
    assert [row["uid"] for row in rows] != [f"p{row}" for row in SERVED]
    assert rows[shuffled[1]]["messages"] == [
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    assert (rows[shuffled[1]]["ground_truth"], rows[shuffled[1]]["dataset"]) == ("4", "math")
    assert settings[1:] == [
        "--seed 1",
        "--num_unique_prompts_rollout 2 --num_samples_per_prompt_rollout 4",
        "--max_prompt_token_length 96",
    ]


def test_json_lines_come_back_as_the_prompts_that_were_served(tmp_path):
    exported(tmp_path, "jsonl")
    back = FilePrompts(str(tmp_path / "out/train.jsonl")).load()
    prompts = a_run().prompts
    assert [each.uid for each in back] == [f"p{row}" for row in SERVED]
    for each, row in zip(back, SERVED, strict=True):
        assert each.messages[1:] == prompts[row].messages
        assert (each.answer, each.source, each.labels) == (prompts[row].answer, "sums", {"level": row / 2})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of TRL and of the vLLM that it imports
def test_trl_meets_the_prompts_batch_by_batch_and_grades_their_answers_as_right(tmp_path):
    """Its own trainer, with the settings as they were written, and its own reward."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.rewards import accuracy_reward

    from saerl_lightning.assets.tiny import build_tiny_policy

    build_tiny_policy(tmp_path / "policy", [prompt.text for prompt in a_run().prompts])
    exported(tmp_path, "trl")
    settings = yaml.safe_load((tmp_path / "out/settings.txt").read_text())
    rows = load_dataset("parquet", data_files=str(tmp_path / "out/train.parquet"), split="train")
    met: list[list[str]] = []

    def reward(completions, uid, solution, answer, **_):
        met.append(uid)
        said = [[{"role": "assistant", "content": f"So \\boxed{{{each}}}"}] for each in answer]
        assert accuracy_reward(said, solution) == [1.0] * len(uid)
        return [float(i) for i in range(len(completions))]

    config = GRPOConfig(
        str(tmp_path / "run"), per_device_train_batch_size=8, max_completion_length=2, num_train_epochs=1,
        use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True, **settings,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    GRPOTrainer(model, reward, config, train_dataset=rows, processing_class=tokenizer).train()
    assert met == [[f"p{row}"] * 4 + [f"p{other}"] * 4 for row, other in zip(SERVED[::2], SERVED[1::2], strict=True)]


def test_columns_that_rewards_read_are_exported_as_they_are(tmp_path):
    """A reward that ran on the data runs on the export: before, its `solution` and `batch` were replaced by ours."""
    own = {"solution": r"Thus $\boxed{4}$.", "answer": "It is 4. #### 4", "batch": "mine", "level": "Level 1"}
    model = {"style": "model", "ground_truth": "4", "rubric": "short"}
    run = a_run(columns={**own, "reward_model": model, "extra_info": {"batch": "nested"}})
    for trainer in ("trl", "verl"):
        export_plan(tmp_path / trainer, trainer, run, CHAT, 4)
    trl = parquet.read_table(tmp_path / "trl/train.parquet").to_pylist()
    assert {name: trl[1][name] for name in own} == own
    assert [row["saerl_batch"] for row in trl] == [0, 0, 1, 1, 2, 2] and trl[1]["saerl_level"] == 1.0
    assert all(row["solution"] is None and row["batch"] is None for row in trl[2:])  # no value of ours among the user's
    verl = parquet.read_table(tmp_path / "verl/train.parquet").to_pylist()[1]
    assert verl["reward_model"] == model and verl["extra_info"]["batch"] == "nested"
    assert verl["extra_info"]["answer"] == own["answer"] and verl["extra_info"]["saerl_batch"] == 0


def test_the_columns_of_a_prompts_row_reach_the_rewards_of_the_other_trainer(tmp_path):
    columns = {
        "prompt": "raw",
        "unit": "km",
        "extra_info": {"index": 77, "split": "test", "hint": 3},
        "dataset": "gsm8k",
    }
    run = a_run(columns=columns)
    for trainer in ("trl", "verl", "open-instruct"):
        export_plan(tmp_path / trainer, trainer, run, CHAT, 4)
    [trl] = [row for row in parquet.read_table(tmp_path / "trl/train.parquet").to_pylist() if row["uid"] == "p2"]
    assert (trl["unit"], trl["prompt"][1]["content"], trl["solution"]) == ("km", "What is 2 + 2?", "$4$")
    verl = parquet.read_table(tmp_path / "verl/train.parquet").to_pylist()[1]["extra_info"]
    assert (verl["unit"], verl["hint"], verl["index"], verl["split"]) == ("km", 3, 77, "test")
    lines = [json.loads(line) for line in (tmp_path / "open-instruct/train.jsonl").read_text().splitlines()]
    assert {line["uid"]: line["dataset"] for line in lines}["p2"] == "gsm8k"
    mixed = replace(run, prompts=[replace(p, columns={"x": [1, "a"][i % 2]}) for i, p in enumerate(run.prompts)])
    with pytest.raises(InputError, match="can't stand in parquet"):
        export_plan(tmp_path / "mixed", "trl", mixed, CHAT, 4)
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize(
    "given", [{"prefill": "<think>"}, {"options": {"enable_thinking": False}}, {"template": "t.jinja"}]
)
def test_a_chat_that_messages_do_not_hold_is_not_exported(given, tmp_path):
    with pytest.raises(InputError, match=f"data.chat.{next(iter(given))} is .* which an export does not hold"):
        require_export(str(tmp_path / "out"), "trl", ChatTemplate(**given))


def test_a_prompt_that_a_trainer_can_not_hold_is_named_and_nothing_is_written(tmp_path):
    for trainer in ("open-instruct", "jsonl"):
        with pytest.raises(InputError, match=r"can't hold 1 of 6 prompts: 'p2' is graded by more than its answer"):
            export_plan(tmp_path / "out", trainer, a_run(grading="{}"), CHAT, 4)
    none = replace(a_run(), plan=replace(SamplePlan.sequential(10, 2), rows=np.array([3])))
    with pytest.raises(InputError, match="serves no prompt"):
        export_plan(tmp_path / "out", "trl", none, CHAT, 4)
    assert list(tmp_path.iterdir()) == []
    export_plan(tmp_path / "out", "verl", a_run(grading="{}"), CHAT, 4)
