"""What the loggers wrote is read back with each one's own format: every step is there, once, on one axis."""

import csv
import itertools
import json
import math
import time
from pathlib import Path

import pytest
import wandb
import yaml
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from saerl_lightning import cli
from saerl_lightning.errors import InputError
from saerl_lightning.run_folder import RunFolder
from saerl_lightning.training.loggers import continue_run
from tests.cli.wandb_offline import OfflineRun

CONFIGS = Path(__file__).parents[2] / "configs"
STEP = "trainer/global_step"
EVERY_STEP = {
    "loss",
    "reward/mean",
    "reward/std",
    "reward/format/mean",
    "reward/format/failed_frac",
    "reward/format/seconds",
    "groups/zero_variance_frac",
    "groups/effective",
    "groups/tokens_per_effective",
    "completions/length_mean",
    "completions/truncated_frac",
    "policy/entropy",
    "optim/grad_norm",
    "optim/lr",
    "sampler/mismatch_mean",
    "sampler/mismatch_max",
    "time/generate",
    "time/score",
    "time/forward",
    "time/backward",
    "time/sync",
    "throughput/sampled_tokens_per_s",
}


def logger(name: str) -> list[str]:
    return ["-c", str(CONFIGS / f"logger/{name}.yaml")]


# -- W&B ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb_offline(monkeypatch, tmp_path):
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    def end() -> None:
        wandb.finish()
        wandb.teardown()  # only when its process is gone is the file whole

    yield end
    end()


def test_wandb_holds_every_step_on_one_axis(workplace, wandb_offline):
    flags = ["--trainer.max_steps=3", "--trainer.val_check_interval=2", workplace.with_dev()]
    cli.run(workplace.command("fit", *logger("wandb"), *flags))
    wandb_offline()
    rows = OfflineRun(workplace.run_dir).history
    steps = [row for row in rows if "reward/mean" in row]
    assert [row[STEP] for row in steps] == [0, 1, 2]
    for row in steps:
        assert set(row) >= EVERY_STEP
    evaluated = [row[STEP] for row in rows if "val/dev/avg@2" in row]
    assert evaluated == [0, 1]  # before the first step, and after the second
    assert [row["_step"] for row in rows] == list(range(len(rows)))  # W&B's own counter: nothing was dropped
    assert all(earlier[STEP] <= later[STEP] for earlier, later in itertools.pairwise(rows))
    assert sampled_reward(workplace) == pytest.approx(steps[0]["reward/mean"])


def offline_runs(run_dir: Path) -> list[OfflineRun]:
    """W&B's runs of a run folder, the earliest first."""
    return [OfflineRun(run_dir, folder) for folder in sorted((run_dir / "wandb").glob("offline-run-*"))]


def test_a_resumed_run_goes_on_as_the_same_wandb_run(workplace, wandb_offline):
    cli.run(workplace.command("fit", *logger("wandb"), "--trainer.max_steps=2"))
    wandb_offline()
    time.sleep(1)  # W&B names folders by the second
    cli.run(workplace.command("fit", *logger("wandb"), "--trainer.max_steps=3", "--ckpt_path=last"))
    wandb_offline()
    first, second = offline_runs(workplace.run_dir)
    assert first.run.run_id == second.run.run_id
    assert [row[STEP] for row in second.history if "reward/mean" in row] == [2]
    assert first.run.run_id not in (workplace.run_dir / "config.yaml").read_text()  # for a copy in another folder
    cli.run(workplace.command("fit", *logger("wandb"), "--trainer.max_steps=1", "--overwrite=true"))
    wandb_offline()
    [anew] = offline_runs(workplace.run_dir)
    assert anew.run.run_id != first.run.run_id


def test_an_id_of_the_users_own_is_kept(tmp_path):
    (tmp_path / "wandb/offline-run-20260101_000000-abc").mkdir(parents=True)
    (tmp_path / "wandb/run-20250101_000000-first-one").mkdir()
    mine, other = (WandbLogger(save_dir=tmp_path, offline=True, **given) for given in ({"id": "mine"}, {}))
    continue_run([mine, other, CSVLogger(tmp_path)], tmp_path)
    assert (mine.version, other.version) == ("mine", "first-one")


def sampled_reward(workplace) -> float:
    """Mean reward of the first step, from the completions that were shown."""
    lines = [json.loads(line) for line in (workplace.run_dir / "completions.jsonl").read_text().splitlines()]
    rewards = [line["reward"] for line in lines if line["step"] == 1]
    return sum(rewards) / len(rewards)


def test_wandb_holds_the_config_and_the_completions(workplace, wandb_offline):
    cli.run(workplace.command("fit", *logger("wandb"), "--trainer.max_steps=1"))
    wandb_offline()
    logged = OfflineRun(workplace.run_dir)
    assert logged.run.project == "saerl_lightning"
    assert logged.run.display_name != "csv"  # the baseline's name for its CSV folder
    assert logged.config == yaml.safe_load((workplace.run_dir / "config.yaml").read_text())
    shown = logged.tables["completions/step_1"]
    lines = [json.loads(line) for line in (workplace.run_dir / "completions.jsonl").read_text().splitlines()]
    assert [dict(zip(shown["columns"], row, strict=True)) for row in shown["data"]] == lines
    assert len(lines) == 8 and {line["uid"] for line in lines} <= {f"train-{i}" for i in range(12)}


def test_a_run_that_is_refused_leaves_no_wandb_folder(workplace, wandb_offline, door):
    ended = door(workplace.command("fit", *logger("wandb"), "--data.batch_size=13"))
    assert ended.code == 2 and "batch_size is 13" in ended.error
    wandb_offline()
    assert not workplace.run_dir.exists()


def test_a_run_that_is_refused_after_wandb_has_begun_leaves_nothing(tmp_path):
    """W&B's process wrote into the folder again after its files were deleted."""
    folder = tmp_path / "run"
    folder.mkdir()

    def begins_and_is_refused() -> None:
        with RunFolder(folder).claimed(overwrite=False, checkpoint=None, last=False):
            wandb.init(dir=folder, mode="offline", settings=wandb.Settings(silent=True, console="wrap"))
            print("a line")  # W&B keeps what is printed, and writes it at its end
            raise InputError("no")

    with pytest.raises(InputError, match="no"):
        begins_and_is_refused()
    wandb.finish()  # as at the end of a process
    wandb.teardown()
    assert not list(folder.rglob("*"))


@pytest.fixture
def keyless(monkeypatch, tmp_path):
    """No key anywhere that W&B looks, and no way to begin a run or to parse past the door."""
    for name in ("MODE", "API_KEY", "IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield tmp_path / "netrc"
    wandb.teardown()


def test_without_a_key_wandb_is_refused_before_anything_is_made(workplace, keyless, door, monkeypatch):
    monkeypatch.setattr(cli.RunCLI, "instantiate_classes", lambda self: pytest.fail("past the door"))
    for verb in ("fit", "test"):
        ended = door(workplace.command(verb, *logger("wandb")))
        assert ended.code == 2 and "there is no W&B key; set WANDB_API_KEY " in ended.error
        assert "mode: offline" in ended.error and "another logger, such as TensorBoardLogger" in ended.error
        assert len(ended.stderr.splitlines()) == 1
    assert not workplace.run_dir.exists()


ODD = {
    "a key cut short": ("API_KEY", "secret", "WANDB_API_KEY invalid: API key must have 40"),
    "a mode that is none": ("MODE", "off", "WANDB_MODE is 'off', and W&B does not take it: "),
}


@pytest.mark.parametrize(("name", "value", "says"), ODD.values(), ids=ODD)
def test_what_wandb_does_not_take_is_refused_at_the_door(workplace, keyless, door, monkeypatch, name, value, says):
    monkeypatch.setenv(f"WANDB_{name}", value)
    ended = door(workplace.command("fit", *logger("wandb")))
    assert ended.code == 2 and says in ended.error and "secret" not in ended.error


def test_a_run_that_sends_nothing_is_taken_without_a_key(workplace, keyless, parsed):
    offline = {"class_path": "WandbLogger", "init_args": {"offline": True}}
    taken = parsed(workplace.command("fit", f"--trainer.logger={json.dumps(offline)}"))["trainer"]["logger"]
    assert taken["init_args"]["offline"] is True


def test_a_key_in_netrc_is_taken_and_one_for_another_host_is_none(workplace, keyless, parsed, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    line = workplace.command("fit", *logger("wandb"))
    keyless.write_text(f"machine example.org\nlogin user\npassword {'0' * 40}\n")
    with pytest.raises(InputError, match="there is no W&B key"):
        parsed(line)
    keyless.write_text(f"machine api.wandb.ai\nlogin user\npassword {'0' * 40}\n")
    taken = [each for each in parsed(line)["trainer"]["logger"] if each["class_path"].endswith("WandbLogger")]
    assert [each["init_args"]["offline"] for each in taken] == [False]


def test_a_server_that_is_not_reached_is_one_line(workplace, keyless, door, monkeypatch):
    import wandb
    from wandb.errors import CommError

    def unreachable(**_):
        raise CommError("Timed out while retrying:\nno such host")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", unreachable)
    ended = door(workplace.command("fit", *logger("wandb")))
    assert ended.code == 2 and "W&B can't be used: Timed out while retrying: no such host; check" in ended.error
    assert not list(workplace.run_dir.glob("*"))


# -- TensorBoard and CSV -----------------------------------------------------------------------------------------------


def test_tensorboard_holds_every_step(workplace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cli.run(workplace.command("fit", *logger("tensorboard")))
    events = EventAccumulator(str(workplace.run_dir / "tensorboard/version_0")).Reload()
    assert set(events.Tags()["scalars"]) >= EVERY_STEP
    for name in ("reward/mean", "time/generate", "sampler/mismatch_mean"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [0, 1, 2]
        assert all(math.isfinite(scalar.value) for scalar in scalars)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_csv_has_one_row_a_step_and_a_resumed_run_keeps_the_older_rows(workplace):
    cli.run(workplace.command("fit", "--trainer.max_steps=2"))
    older = workplace.run_dir / "csv/version_0/metrics.csv"
    before = older.read_text()
    assert [row["step"] for row in rows_of(older)] == ["0", "1"]
    assert set(rows_of(older)[0]) >= EVERY_STEP
    assert all(row[name] for row in rows_of(older) for name in EVERY_STEP)  # no empty cell
    cli.run(workplace.command("fit", "--trainer.max_steps=5", "--ckpt_path=last"))
    assert older.read_text() == before
    assert [row["step"] for row in rows_of(workplace.run_dir / "csv/version_1/metrics.csv")] == ["2", "3", "4"]


def test_several_loggers_write_side_by_side(workplace):
    loggers = [{"class_path": "CSVLogger"}, {"class_path": "TensorBoardLogger"}]
    for each in loggers:
        each["init_args"] = {"save_dir": "elsewhere", "name": each["class_path"]}
    cli.run(workplace.command("fit", "--trainer.max_steps=1", f"--trainer.logger={json.dumps(loggers)}"))
    assert (workplace.run_dir / "CSVLogger/version_0/metrics.csv").exists()
    assert list((workplace.run_dir / "TensorBoardLogger/version_0").glob("events.*"))
    assert not Path("elsewhere").exists()
