"""`validate`, `test` and `predict` from a checkpoint or an HF folder, and when `fit` validates."""

import csv
import json

import pytest
import torch

from saerl_lightning import cli

METRICS = {"avg@2", "pass@1", "pass@2", "maj@2", "truncated_frac", "acc/topic/even", "acc/topic/odd"}
MACRO = {"avg@k", "pass@1", "pass@2", "maj@k", "truncated_frac"}


def logged(run_dir, version: int) -> list[dict[str, float]]:
    """Rows of metrics.csv, without their empty cells."""
    with (run_dir / f"csv/version_{version}/metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def evaluated(metrics: dict, stage: str) -> dict[str, float]:
    return {k.removeprefix(f"{stage}/"): float(v) for k, v in metrics.items() if k.startswith(f"{stage}/")}


def final(trained) -> dict[str, float]:
    """What `fit` measured after its last step."""
    return [row for row in (evaluated(r, "val") for r in logged(trained.workplace.run_dir, 0)) if row][-1]


def test_fit_validates_at_step_0_and_every_n_steps(trained):
    rows = [row for row in logged(trained.workplace.run_dir, 0) if "val/dev/avg@2" in row]
    assert [row["step"] for row in rows] == [0, 1, 3]  # before the first step, after two, after four
    levels = {f"acc/level/{i}" for i in range(4)}
    names = {f"dev/{name}" for name in METRICS} | {f"macro/{name}" for name in MACRO}
    assert set(evaluated(rows[0], "val")) - {f"dev/{level}" for level in levels} == names
    for row in rows:
        assert row["val/macro/avg@k"] == row["val/dev/avg@2"]  # one set: its own average
        assert 0 <= row["val/dev/avg@2"] == row["val/dev/pass@1"] <= row["val/dev/pass@2"] <= 1
        halves = [row["val/dev/acc/topic/even"], row["val/dev/acc/topic/odd"]]
        assert sum(halves) / 2 == pytest.approx(row["val/dev/avg@2"])


def test_a_resumed_run_does_not_validate_before_it_goes_on(workplace):
    flags = ["--trainer.val_check_interval=2", workplace.with_dev()]
    cli.run(workplace.command("fit", "--trainer.max_steps=2", *flags))
    cli.run(workplace.command("fit", "--trainer.max_steps=4", *flags, "--ckpt_path=last"))
    first, second = (logged(workplace.run_dir, version) for version in (0, 1))
    assert [row["step"] for row in first if "val/dev/avg@2" in row] == [0, 1]
    assert [row["step"] for row in second if "val/dev/avg@2" in row] == [3]
    assert [row["step"] for row in second if "loss" in row] == [2, 3]


def steps_in(checkpoint) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


@pytest.mark.parametrize("flag", ["--trainer.max_steps=5", "--trainer.max_epochs=1"])  # inside an epoch, and at its end
def test_the_last_checkpoint_is_of_the_last_step(workplace, flag):
    made = cli.run(workplace.command("fit", "--trainer.max_steps=-1", "--checkpoint.every_n_train_steps=4", flag))
    assert steps_in(workplace.last) == made.trainer.global_step in (5, 6)


def test_a_finished_run_goes_on_with_more_steps_or_epochs(workplace):
    """Twelve prompts in pairs are six steps an epoch."""
    flags = ["--data.shuffle_seed=null", "--trainer.max_epochs=2"]
    cli.run(workplace.command("fit", *flags, "--trainer.max_steps=4"))
    cli.run(workplace.command("fit", *flags, "--trainer.max_steps=7", "--ckpt_path=last"))
    cli.run(workplace.command("fit", *flags, "--trainer.max_steps=-1", "--ckpt_path=last"))
    assert steps_in(workplace.last) == 12
    whole = cli.run(
        workplace.command("fit", *flags, "--trainer.max_steps=-1", f"--run_dir={workplace.folder / 'whole'}")
    )
    resumed = torch.load(workplace.last, weights_only=True)["state_dict"]
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.model.state_dict().items())


@pytest.mark.parametrize(("verb", "stage"), [("validate", "val"), ("test", "test")])
def test_a_checkpoint_is_evaluated_to_the_numbers_of_its_run(trained, workplace, verb, stage, capsys):
    flags = [f"--run_dir={workplace.run_dir}", trained.workplace.with_dev(), f"--ckpt_path={trained.workplace.last}"]
    made = cli.run(trained.workplace.command(verb, *flags))
    assert evaluated(made.trainer.callback_metrics, stage) == pytest.approx(final(trained))
    file = workplace.run_dir / f"accuracy-{verb}.json"
    [shown] = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("dev, k = 2")]
    found = json.loads(file.read_text())["dev"]
    assert found["questions"] == 4 and shown.split()[4:6] == ["4", f"{found['avg@2']:.3f}"]
    assert found["avg@2"] == pytest.approx(final(trained)["dev/avg@2"], abs=1e-6)
    assert found["avg@2/interval"][0] <= found["avg@2"] <= found["avg@2/interval"][1]


def test_a_model_is_evaluated_without_training_prompts_and_not_trained(workplace, door):
    sets = {"dev": {"source": str(workplace.dev), "limit": 3}}
    command = [*workplace.command("test", f"--data.test={json.dumps(sets)}"), "--data.train=null"]
    made = cli.run(command)
    assert made.datamodule.train is None and "test/dev/avg@2" in made.trainer.callback_metrics
    for verb in ("fit", "plan", "label"):
        out = [
            f"--run_dir={workplace.folder / 'other'}",
            *([] if verb == "fit" else [f"--out={workplace.folder / verb}"]),
        ]
        ended = door([*workplace.command(verb, *out), "--data.train=null"])
        assert ended.code == 2 and "data.train is null; name the prompts to train on" in ended.error


def test_an_exported_folder_is_evaluated_to_the_same_numbers(trained, workplace, door):
    folder = workplace.folder / "hf"
    start = f"--policy={trained.workplace.policy}"
    assert door(["export", str(trained.workplace.last), str(folder), start]).code == 0
    made = cli.run(workplace.command("validate", f"--model.policy.path={folder}", workplace.with_dev()))
    assert evaluated(made.trainer.callback_metrics, "val") == pytest.approx(final(trained))


def test_named_sets_keep_their_own_sampling_and_the_macro_average_weighs_them_alike(workplace):
    sets = {
        "dev": str(workplace.dev),
        "four": {"source": str(workplace.train), "keep_trained": True, "sampling": {"group_size": 4, "max_tokens": 8}},
    }
    made = cli.run(workplace.command("test", f"--data.test={json.dumps(sets)}"))
    values = evaluated(made.trainer.callback_metrics, "test")
    assert {"dev/avg@2", "four/avg@4", "four/pass@4"} <= set(values) and "dev/pass@4" not in values
    assert values["macro/avg@k"] == pytest.approx((values["dev/avg@2"] + values["four/avg@4"]) / 2)
    assert "macro/pass@4" not in values


def test_predict_writes_every_completion(trained, workplace):
    flags = [f"--run_dir={workplace.run_dir}", workplace.with_dev(), f"--ckpt_path={trained.workplace.last}"]
    for seed in (1, 2):  # the second run begins the file anew, and keeps the first one's
        cli.run(workplace.command("predict", *flags, f"--data.val_sampling.seed={seed}"))
    lines = [json.loads(line) for line in (workplace.run_dir / "predictions.jsonl").read_text().splitlines()]
    asked = {(each["prompt"], each["answer"]) for each in map(json.loads, workplace.dev.read_text().splitlines())}
    assert [line["uid"] for line in lines] == [f"dev-{i}" for i in range(4) for _ in range(2)]
    assert len({line["completion"] for line in lines}) > 1
    for line in lines:
        assert set(line) == {"uid", "set", "prompt", "answer", "completion", "truncated"}
        assert line["set"] == "dev" and (line["prompt"], line["answer"]) in asked
    [earlier] = workplace.run_dir.glob("predictions-2*.jsonl")
    first = [json.loads(line) for line in earlier.read_text().splitlines()]
    assert [each["uid"] for each in first] == [each["uid"] for each in lines] and first != lines


def test_the_last_checkpoint_of_a_folder_without_one_is_refused(workplace, door):
    ended = door(workplace.command("test", "--ckpt_path=last", workplace.with_dev()))
    assert ended.code == 2 and "no checkpoint at" in ended.error


def test_evaluation_without_a_set_is_refused(workplace, door):
    ended = door(workplace.command("validate"))
    assert ended.code == 2 and "nothing to evaluate on" in ended.error


def test_evaluating_a_checkpoint_of_another_model_is_refused(trained, workplace, door):
    other = json.dumps({"rank": 4})
    flags = [f"--ckpt_path={trained.workplace.last}", f"--model.policy.lora={other}", workplace.with_dev()]
    ended = door(workplace.command("test", *flags))
    assert ended.code == 2 and "the checkpoint is of another model" in ended.error
