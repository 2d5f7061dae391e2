"""`main.py plan`, from YAML to the files: what is printed and written is what a run with the same flags would serve."""

import json
import shutil

import numpy as np
import pyarrow.parquet as parquet
import pytest

from saerl_lightning import cli
from saerl_lightning.plan_page.ledger import Ledger
from saerl_lightning.study.costs import run_costs

SLOTS = {
    "signals": {"class_path": "RandomSignals", "init_args": {"columns": 16}},
    "filtering": {"class_path": "RandomFilter", "init_args": {"fraction": 0.1}},
    "clustering": {"class_path": "KMeansClusters", "init_args": {"clusters": 2}},
    "curriculum": {"class_path": "LabelOrder"},
    "mixing": {"class_path": "TailMixing", "init_args": {"fraction": 0.5}},
}


@pytest.fixture
def command(workplace):
    """The tool's command line, with every slot filled but those that are switched off."""

    def write(*flags: str, off: tuple[str, ...] = ()) -> list[str]:
        overlay = workplace.folder / "slots.yaml"
        slots = {slot: None if slot in off else value for slot, value in SLOTS.items()}
        overlay.write_text(json.dumps({"data": {"init_args": slots}}))
        train, *settings = workplace.command("plan", "-c", str(overlay))
        return [train, *settings, *_numbers(workplace), f"--out={workplace.folder / 'plan'}", *flags]

    return write


def _numbers(workplace) -> list[str]:
    """The later config must not hide the workplace's numbers."""
    return [f"--data.train={workplace.train}", "--data.batch_size=2"]


def rows_of(printed: str) -> set[str]:
    """Rows of the printed tables, their cells joined by single blanks."""
    return {" ".join(line.replace("│", " ").split()) for line in printed.splitlines()}


SUMMARY = """\
2 prompts x 4 completions = 8 rows a batch, 8 on each of 1 rank(s)
forward and backward in 1 to 2 micro-batches a rank, of at most 512 tokens each
3 batches x 1 update(s) = 3 optimiser steps
at most 192 sampled tokens (64 a batch)
"""


def test_the_plan_is_printed_and_written_and_is_the_one_that_a_run_serves(workplace, command, door, capsys):
    ended = cli.run(command())
    printed = capsys.readouterr().out
    assert printed.startswith("memory: at most about ")
    assert SUMMARY in printed  # the arithmetic that fit prints: max_steps 3 ends it
    for row in (
        "prompts in the pool 12",
        "random 0.1 of the prompts (seed 0) 1 8.3 %",
        "slots that are off online",
        "clustering KMeansClusters clusters 2 –",
    ):
        assert row in rows_of(printed)
    folder = workplace.folder / "plan"
    assert sorted(path.name for path in folder.iterdir()) == ["ledger.parquet", "plan.html"]
    assert 'id="map"' in (folder / "plan.html").read_text()  # an operation read features, so there is a map
    ledger = Ledger.read(folder / "ledger.parquet")
    assert (ledger.batches, ledger.batch_size, (ledger.fate == "dropped").sum()) == (5, 2, 1)
    assert not hasattr(ended.model, "model")  # no weights were loaded
    assert not workplace.run_dir.exists()
    trained = cli.run(workplace.command("fit", "-c", str(workplace.folder / "slots.yaml"), *_numbers(workplace)))
    assert trained.datamodule.planned.digest == ledger.digest
    served = [[p.uid for p in batch.prompts] for batch in trained.datamodule.train_dataloader()]
    by_step = [sorted(ledger.uid[ledger.batch == step].tolist()) for step in range(5)]
    assert [sorted(uids) for uids in served] == by_step


def test_the_plan_is_exported_for_another_trainer_with_the_settings_that_keep_its_order(
    workplace, command, door, capsys
):
    folder = workplace.folder / "elsewhere"
    cli.run(command(f"--export={folder}", "--for=verl"))
    printed = capsys.readouterr().out
    for line in ("data.shuffle=False", "data.train_batch_size=2", "actor_rollout_ref.rollout.n=4"):
        assert f"  {line}\n" in printed
    ledger = Ledger.read(workplace.folder / "plan/ledger.parquet")
    rows = parquet.read_table(folder / "train.parquet").to_pylist()
    assert [ledger.batch[row["extra_info"]["index"]] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for flags, says in (
        ([f"--export={folder}"], "exists and is not empty"),
        (["--for=trl"], "no folder is named to write to; add --export DIR"),
        ([f"--export={folder}", "--for=openrlhf"], "'openrlhf'"),
    ):
        ended = door([*command(), *flags, "--data.train=never-read.jsonl"])
        assert ended.code == 2 and says in ended.error, ended.stderr


def test_plan_page_and_run_say_that_only_the_easy_end_is_served(workplace, command, capsys):
    """Five batches are planned; the first two steps end the run."""
    off, says = (
        ("clustering", "mixing"),
        "warning: this run ends after 2 of the plan's 5 batches (40%), and serves the lowest",
    )
    cli.run(command("--trainer.max_steps=2", off=off))
    assert says in capsys.readouterr().out
    assert "and serves the lowest of its order" in (workplace.folder / "plan/plan.html").read_text()
    run = ["-c", str(workplace.folder / "slots.yaml"), *_numbers(workplace), "--trainer.max_steps=2"]
    cli.run(workplace.command("fit", *run))
    assert says in capsys.readouterr().out
    cli.run(command("--trainer.max_steps=5", off=off))
    assert "warning: this run ends" not in capsys.readouterr().out


def test_validation_sets_are_not_read(workplace, command, door):
    ended = door([*command(), "--data.val=" + json.dumps({"dev": str(workplace.folder / "missing.jsonl")})])
    assert ended.code == 0, ended.stderr


def test_the_page_says_which_slots_are_off_and_leaves_their_panels_out(workplace, command, door):
    assert door(command(off=("signals", "clustering", "mixing"))).code == 0
    page = (workplace.folder / "plan/plan.html").read_text()
    for slot in ("signals", "clustering", "mixing"):
        assert f"<code>data.{slot}</code> No " in page
    assert 'id="clusters"' not in page and 'id="map"' not in page and 'data-figure="composition"' not in page
    assert 'data-figure="difficulty"' in page and "RandomFilter rates no quality" in page


def test_against_another_ledger(workplace, command, door, capsys):
    assert door(command()).code == 0
    other = shutil.copy(workplace.folder / "plan/ledger.parquet", workplace.folder / "other.parquet")
    cli.run(command(f"--against={other}"))
    assert "Kendall's tau of the order 1" in rows_of(capsys.readouterr().out)
    assert "Both plans serve the same prompts in the same order." in (workplace.folder / "plan/plan.html").read_text()
    cli.run(command(f"--against={other}", "--data.curriculum.descending=true"))
    printed = capsys.readouterr().out
    assert {"Spearman correlation of difficulty -1", "Prompts that move most"} <= rows_of(printed)
    assert 'id="against"' in (workplace.folder / "plan/plan.html").read_text()


def test_what_can_not_be_compared_or_written_is_refused_before_anything_is_computed(workplace, command, door):
    broken = workplace.folder / "broken.parquet"
    broken.write_bytes(b"PAR1 half a ledger")
    taken = workplace.folder / "taken"
    taken.write_text("")
    for flags, says in (
        (["--against=nowhere.parquet"], "'nowhere.parquet' is no file"),
        ([f"--against={broken}"], "no readable parquet file"),
        ([f"--out={taken}"], "is a file; name a folder"),
        (["--model.sampling.group_size=1"], "sampling.group_size is 1"),
        (["--model.sampling.max_tokens=4096", "--model.micro_tokens=9999"], "beyond the policy's context"),
    ):
        ended = door([*command(), *flags, "--data.train=never-read.jsonl"])
        assert ended.code == 2 and says in ended.error, ended.stderr
    assert not (workplace.folder / "plan").exists()


def test_a_ledger_of_other_prompts_is_refused_with_counts(workplace, command, door):
    assert door(command()).code == 0
    other = shutil.copy(workplace.folder / "plan/ledger.parquet", workplace.folder / "other.parquet")
    lines = workplace.train.read_text().splitlines()
    workplace.train.write_text("\n".join(lines[:10]).replace("train-0", "train-new"))
    ended = door(command(f"--against={other}"))
    assert ended.code == 2 and "9 are in both, 3 only in the one to compare with, 1 only in this plan" in ended.error


# -- PlanTable ---------------------------------------------------------------------------------------------------------


def test_a_run_puts_on_record_what_it_serves(workplace, command):
    _, *flags = command()
    out = [flag for flag in flags if not flag.startswith("--out=")]
    trained = cli.run(["fit", *out, "--trainer.callbacks+=PlanTable", "--trainer.max_steps=2"])
    ledger = Ledger.read(workplace.run_dir / "ledger.parquet")
    assert ledger.digest == trained.datamodule.planned.digest
    np.testing.assert_array_equal(ledger.batch, trained.datamodule.plan.batch_of())
    assert parquet.read_table(workplace.run_dir / "ledger.parquet").num_rows == 12
    assert 0 < run_costs(workplace.run_dir)["plan_s"] == pytest.approx(trained.datamodule.plan_seconds, abs=0.001)


@pytest.mark.parametrize("verb", ["plan", "fit"])
def test_the_tables_go_to_wandb(verb, workplace, command, monkeypatch, tmp_path):
    import wandb

    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    _, *flags = command("-c", str(cli.Path(__file__).parents[2] / "configs/logger/wandb.yaml"))
    if verb == "fit":
        flags = [flag for flag in flags if not flag.startswith("--out=")]
        callback = [{"class_path": "PlanTable", "init_args": {"rows": 5}}]
        flags += [f"--trainer.callbacks={json.dumps(callback)}", "--trainer.max_steps=1"]
    cli.run([verb, *flags])
    wandb.finish()
    wandb.teardown()
    tables = {}
    for path in (workplace.run_dir / "wandb").glob("offline-run-*/files/media/table/plan/*.json"):
        tables[path.name.partition("_")[0]] = json.loads(path.read_text())
    assert set(tables) >= {"overview", "clusters", "ledger"}
    assert len(tables["ledger"]["data"]) == (5 if verb == "fit" else 12)
    assert ["prompts in the pool", "12"] in tables["overview"]["data"]
