"""Names at the door: of numbers that are waited for and nothing logs, and of sets, rewards and loggers."""

import csv
import json
import re
from pathlib import Path

import lightning
import pytest
import torch

from saerl_lightning import cli
from saerl_lightning.errors import InputError
from saerl_lightning.policy.load import Policy
from saerl_lightning.reward.format import FormatReward
from saerl_lightning.reward.reward import require_distinct
from saerl_lightning.study.folder import resolve
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.training.loggers import GRPO, SAE, SFT, LoggedNames
from tests.cli.test_door import the_line
from tests.cli.test_study_wandb import small_study

DOCS = Path(__file__).parents[2] / "docs"


class Silent(lightning.Callback):
    """A user's own callback, which could log anything."""


def early(monitor: str) -> str:
    given = {"class_path": "EarlyStopping", "init_args": {"monitor": monitor}}
    return f"--trainer.callbacks+={json.dumps(given)}"


# -- numbers that are waited for ---------------------------------------------------------------------------------------


def first_column(page: str, begin: str, end: str) -> set[str]:
    text = (DOCS / page).read_text()
    text = text[text.index(begin) : text.index(end)]
    cells = re.findall(r"^\| (`.*?) \| ", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell) if "<" not in name}


def test_logged_names_are_those_that_the_pages_define():
    assert set(GRPO) - {"reward"} == first_column("metrics.md", "## A GRPO step", "### Data")
    measured = {name for name in SAE if name.startswith(("sae/", "val/"))}
    assert measured == first_column("howto/sae.md", "| `sae/l0`", "| `optim/lr`, ")


def test_what_a_run_logs_is_among_them(trained):
    names = LoggedNames.of_policy(GRPO, {"dev": 2}, ["format"])
    with next(trained.workplace.run_dir.glob("csv/version_*/metrics.csv")).open() as file:
        logged = set(next(csv.reader(file))) - {"step", "epoch"}
    assert {"reward/format/std", "val/macro/pass@2", "val/dev/acc/topic/odd", "time/old"} & logged
    for name in logged:
        names.require("monitor", name)


def test_sets_of_their_own_size_share_only_what_all_have():
    names = LoggedNames.of_policy(SFT, {"few": 1, "many": 4}, None)
    for name in ("val/few/avg@1", "val/many/pass@4", "val/macro/avg@k", "val/macro/pass@1", "val/many/acc/level/3"):
        names.require("monitor", name)
    for name in ("val/few/avg@4", "val/macro/pass@4", "val/many/pass@3", "val/macro/acc/level/3", "val/other/avg@1"):
        with pytest.raises(InputError):
            names.require("monitor", name)


MONITORS = {
    "another k": (
        ["--checkpoint.monitor=val/dev/avg@8"],
        "monitor is 'val/dev/avg@8', .* did you mean 'val/dev/avg@2'",
    ),
    "the macro's": (["--checkpoint.monitor=val/macro/avg@2"], "did you mean 'val/macro/avg@k'"),
    "a reward's": ([early("reward/formt/mean")], "EarlyStopping.monitor is .* did you mean 'reward/format/mean'"),
    "nothing near": ([early("xyzzy")], "'xyzzy', which this run does not log; docs/metrics.md lists"),
    "no set": (["--checkpoint.monitor=val/macro/avg@k", "--data.val=null"], "log; data.val names no set"),
}


@pytest.mark.parametrize(("flags", "says"), MONITORS.values(), ids=MONITORS)
def test_a_monitor_of_what_nothing_logs_is_refused_before_the_model_loads(workplace, door, monkeypatch, flags, says):
    monkeypatch.setattr(Policy, "load_model", lambda self: pytest.fail("the model was loaded"))
    ended = door(workplace.command("fit", workplace.with_dev(), *flags))
    assert re.search(says, the_line(ended)) and not workplace.run_dir.exists()


def test_the_best_are_kept_by_the_validation_of_their_own_weights(workplace):
    flags = ["--checkpoint.monitor=val/macro/avg@k", "--checkpoint.mode=max", "--checkpoint.save_top_k=2"]
    every = ["--trainer.val_check_interval=1", "--checkpoint.every_n_train_steps=1", "--model.optimizer.lr=0.05"]
    run = cli.run(workplace.command("fit", workplace.with_dev(), early("reward/mean"), *flags, *every))
    with next(workplace.run_dir.glob("csv/version_*/metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    measured = [float(row["val/macro/avg@k"]) for row in rows if row["val/macro/avg@k"]]  # at steps 0, 1, 2, 3
    kept = {
        torch.load(path, weights_only=True)["global_step"]: path for path in workplace.last.parent.glob("epoch*.ckpt")
    }
    best = {step: float(run.trainer.checkpoint_callback.best_k_models[str(path)]) for step, path in kept.items()}
    assert best == pytest.approx({step: measured[step] for step in kept}) and len(kept) == 2
    assert sorted(best.values()) == pytest.approx(sorted(measured[1:])[-2:]) and len(set(measured)) > 1
    assert torch.load(workplace.last, weights_only=True)["global_step"] == 3


def test_what_only_the_run_can_know_is_said_at_the_first_validation(workplace, door):
    own = '--trainer.callbacks+={"class_path": "tests.cli.test_door_names.Silent"}'
    flags = ["--trainer.val_check_interval=1", "--trainer.enable_progress_bar=true", own, early("own/scor")]
    ended = door(workplace.command("fit", workplace.with_dev(), *flags))
    assert ended.code == 2 and "EarlyStopping.monitor is 'own/scor', which this run does not log" in ended.error


def test_a_studys_metric_that_no_run_logs_is_refused(workplace, tmp_path):
    path = small_study(workplace, tmp_path)
    text = path.read_text()
    for metric in ("val/macro/avg@k", "val/dev/pass@2", "reward/mean"):
        path.write_text(f"{text}metric: {metric}\n")
        resolve(StudySpec.read(path), tmp_path / "out")
    path.write_text(f"{text}metric: val/macro/avg@2\n")
    with pytest.raises(InputError, match=r"study's metric is 'val/macro/avg@2', .* did you mean 'val/macro/avg@k'"):
        resolve(StudySpec.read(path), tmp_path / "out")


# -- names that become parts of others ---------------------------------------------------------------------------------

BAD = ["a/b", "../a", "..", "", " a", "a ", "a\nb", "-a", "a" * 101]


@pytest.mark.parametrize("name", [*BAD, "macro"])
def test_a_sets_name_that_would_confuse_metrics_is_refused(workplace, door, name):
    for key in ("val", "test"):
        flag = f"--data.{key}=" + json.dumps({name: str(workplace.dev)})
        assert repr(name)[1:20] in the_line(door(workplace.command("fit", flag)))


@pytest.mark.parametrize("name", BAD)
def test_a_rewards_name_that_would_confuse_metrics_is_refused(monkeypatch, name):
    class Named(FormatReward):
        pass

    monkeypatch.setattr(Named, "name", name)
    with pytest.raises(InputError, match=r"the reward .*becomes part of a path or of a metric's name"):
        require_distinct([Named("x")])


@pytest.mark.parametrize("name", [name for name in BAD if name] + ["/elsewhere"])
@pytest.mark.parametrize("key", ["name", "version"])
def test_a_loggers_name_never_leads_out_of_the_run_folder(workplace, door, key, name):
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": ".", key: name}}
    ended = door(workplace.command("fit", "--trainer.logger=" + json.dumps(logger)))
    assert f"CSVLogger.{key} {name[:120]!r}: the name becomes part of a path" in the_line(ended)
    assert {each.name for each in workplace.folder.iterdir()} == {"train.jsonl", "dev.jsonl"}


def test_a_loggers_plain_names_and_numbers_are_taken(workplace, parsed):
    for given in ({"name": "csv"}, {"version": 3}, {"name": "", "version": "v 1"}, {"version": None}):
        logger = {"class_path": "CSVLogger", "init_args": {"save_dir": ".", **given}}
        taken = parsed(workplace.command("fit", "--trainer.logger=" + json.dumps(logger)))["trainer"]["logger"]
        assert {key: taken["init_args"][key] for key in given} == given


# -- run folders -------------------------------------------------------------------------------------------------------

PLACES = {
    "nothing": ("", "run_dir is ''; write a folder"),
    "a blank": (" ", "run_dir is ' '; write a folder"),
    "a home that no shell wrote": ("~/run", "no shell has put your home in place of '~'"),
    "two lines": ("a\nb", r"run_dir is 'a\nb'; write a name of letters that can be seen"),
    "a byte that ends names": ("a\0b", "write a name of letters that can be seen"),
    "below a file": ("train.jsonl/run", "Not a directory; name another place"),
    "a file": ("train.jsonl", "'train.jsonl' is a file"),
    "a long name": ("x" * 300, "File name too long"),
    "a long path": ("x/" * 2500, "File name too long"),
}


@pytest.mark.parametrize(("run_dir", "says"), PLACES.values(), ids=PLACES)
def test_a_run_folder_that_can_not_be_is_one_short_line(workplace, door, monkeypatch, run_dir, says):
    monkeypatch.chdir(workplace.folder)
    assert says in the_line(door(workplace.command("fit", f"--run_dir={run_dir}")))
    assert {each.name for each in workplace.folder.iterdir()} == {"train.jsonl", "dev.jsonl"}


def test_a_run_folder_may_have_any_name_that_can_be_seen(workplace, door):
    folder = workplace.folder / "a b, ünï ☃ 100%d {x} $HOME"
    assert door(workplace.command("fit", "--trainer.max_steps=1", f"--run_dir={folder}")).code == 0
    assert (folder / "checkpoints/last.ckpt").is_file()
    assert door(workplace.command("fit", "--trainer.max_steps=2", f"--run_dir={folder}", "--ckpt_path=last")).code == 0
