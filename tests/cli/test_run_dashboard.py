"""`saerl dashboard`: a view of one run, with panels of what the run has logged and of nothing else."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saerl_lightning import cli
from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.study.dashboard.panels import STEP
from saerl_lightning.study.dashboard.workspace import view_json
from saerl_lightning.tools.dashboard import dashboard, of_folder, of_server, run_workspace
from saerl_lightning.tools.run_sections import LoggedRun, run_sections
from tests.cli.conftest import CONFIGS, Workplace, record, write_prompts
from tests.cli.wandb_offline import OfflineRun
from tests.study.test_dashboard import as_documented, documented

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces' import
SLOTS = {
    "signals": {"class_path": "RandomSignals", "init_args": {"columns": 8}},
    "clustering": {"class_path": "KMeansClusters", "init_args": {"clusters": 2}},
    "curriculum": {"class_path": "EasyToHard", "init_args": {"label": "difficulty"}},
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, policy) -> Path:
    """A run of two steps, offline in W&B, beside its CSV file."""
    import wandb

    workplace = Workplace(tmp_path_factory.mktemp("watched"), policy)
    write_prompts(workplace.train, [record(i) for i in range(40)])
    slots = [f"--data.{name}={json.dumps(value)}" for name, value in SLOTS.items()]
    more = ["-c", str(CONFIGS / "logger/wandb.yaml"), "--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
            patch.setenv(f"WANDB_{name}_DIR", str(workplace.folder / "home"))
        patch.setenv("WANDB_MODE", "offline")
        cli.run(workplace.command("fit", *more, *slots, workplace.with_dev()))
        wandb.finish()
        wandb.teardown()
    return workplace.run_dir


@pytest.fixture
def keyless(monkeypatch, tmp_path):
    import wandb

    for name in ("MODE", "API_KEY", "IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()


def panels(run: LoggedRun) -> dict[str, str]:
    return {panel.shows: panel.kind for section in run_sections(run) for panel in section.panels}


def in_csv(folder: Path) -> set[str]:
    """Names with a number in the CSV file."""
    [path] = folder.glob("csv/version_*/metrics.csv")
    with path.open(newline="") as file:
        return {name for row in csv.DictReader(file) for name, value in row.items() if value}


def test_every_panel_is_of_a_name_that_the_run_logged_and_that_is_documented(run_folder):
    run = of_folder(run_folder)
    shown = panels(run)
    tables = {name for name, kind in shown.items() if kind == "table"}
    plotted = set(shown) - tables
    assert plotted and not plotted - in_csv(run_folder)
    offline = OfflineRun(run_folder)
    assert not plotted - {name for row in offline.history for name in row}  # in W&B under the same names
    rewards = {name for name in plotted if name.startswith("reward/format/")}
    assert len(rewards) == 3
    assert not {as_documented(name) for name in plotted - rewards} - documented()
    assert tables == set(offline.tables) and {"plan/ledger", "completions/step_1"} <= tables
    assert run.ids == (offline.run.run_id,) and run.project == "saerl_lightning"


def test_the_dashboard_has_a_section_for_each_question_about_a_run(run_folder):
    titles = [section.title for section in run_sections(of_folder(run_folder))]
    assert titles == [
        "Rewards and groups",
        "Accuracy of each set",
        "The plan against the measured pass rates",
        "Completions",
        "Sampler against policy",
        "Policy",
        "Operations and probes",
        "Time and throughput of a step",
        "Tables",
    ]
    shown = panels(of_folder(run_folder))
    for name in (
        "groups/zero_variance_frac",
        "completions/length_mean",
        "sampler/mismatch_mean",
        "rollouts/staleness",
        "plan/difficulty",
        "plan/pass_rate",
        "data/curriculum/probe/spearman",
        "time/generate",
    ):
        assert name in shown


def test_the_plan_in_the_log_is_the_plan_of_the_ledger(run_folder):
    """The rating of each step's prompts, averaged from the ledger's rows and from the completions' table."""
    import pyarrow.parquet as parquet

    rows = parquet.read_table(run_folder / "ledger.parquet").to_pylist()
    [path] = run_folder.glob("csv/version_*/metrics.csv")
    with path.open(newline="") as file:
        logged = [float(row["plan/difficulty"]) for row in csv.DictReader(file) if row.get("plan/difficulty")]
    expected = [[row["difficulty"] for row in rows if row["batch"] == step] for step in (0, 1)]
    assert logged == pytest.approx([sum(each) / len(each) for each in expected])
    assert all(len(each) == 2 for each in expected)


def test_without_a_curriculum_there_is_no_plan_to_compare():
    run = LoggedRun("r", ("a1",), "me", "p", frozenset({"plan/pass_rate", "reward/mean"}))
    assert panels(run) == {"reward/mean": "curve"}


def test_long_runs_show_completions_of_three_steps():
    keys = tuple(f"completions/step_{step}" for step in (1, 50, 100, 150, 1000))
    run = LoggedRun("r", ("a1",), "me", "p", frozenset({"reward/mean"}), (*keys, "plan/ledger"))
    tables = [name for name, kind in panels(run).items() if kind == "table"]
    assert tables == ["plan/ledger", "completions/step_1", "completions/step_100", "completions/step_1000"]


def test_the_view_is_of_this_run_alone_and_is_read_back_by_the_librarys_own_models():
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.internal import View

    names = frozenset({"reward/mean", "plan/difficulty", "plan/pass_rate", "data/curriculum/probe/r2"})
    run = LoggedRun("run mine", ("a1", "b2"), "team", "project", names)
    text = view_json(run_workspace(run))
    [ids] = json.loads(text)["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert (ids["key"], ids["op"], ids["value"]) == ({"section": "run", "name": "name"}, "IN", ["a1", "b2"])
    again = Workspace._from_model(View.model_validate_json(text))
    assert view_json(again) == text
    drawn: list[list[Any]] = [list(section.panels) for section in again.sections]
    assert [(each.x.name, each.y[0].name) for panels_of in drawn[:2] for each in panels_of] == [
        (STEP, "reward/mean"),
        (STEP, "plan/difficulty"),
        (STEP, "plan/pass_rate"),
        ("plan/difficulty", "plan/pass_rate"),
    ]
    assert drawn[2][0].metric.name == "data/curriculum/probe/r2"


def test_without_a_key_it_is_refused_or_written_to_a_file(run_folder, keyless, door, tmp_path, capsys):
    ended = door(["dashboard", str(run_folder)])
    assert ended.code == 2 and ended.error.startswith(f"there is no W&B key to make a dashboard of '{run_folder}' with")
    assert ended.error.count("\n") == 1 and "--out FILE" in ended.error
    ended = door(["dashboard", "me/project/a1", "--out", "view.json"])
    assert ended.code == 2 and "set WANDB_API_KEY" in ended.error and not Path("view.json").exists()
    assert door(["dashboard", str(run_folder), "--out", "view.json"]).code == 0
    assert '"plan/pass_rate"' in Path("view.json").read_text()


BAD = {
    "nothing": ("none", {}, "run is 'none', which is no folder and no path in W&B"),
    "an address": (
        "https://wandb.ai/me/p/runs/a1",
        {},
        "no path in W&B; write the folder of a run, or entity/project/id",
    ),
    "named twice": ("me/p/a1", {"project": "q"}, "'me/p/a1' names its entity and project already"),
    "a path": ("me/p/a1", {"entity": "team/project"}, "entity is 'team/project'; write a name of letters"),
    "no run": (".", {"out": "view.json"}, "'.' is no run's folder: it has no config.yaml"),
}


@pytest.mark.parametrize(("run", "arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_at_the_door(run, arguments, message, keyless):
    with pytest.raises(InputError, match=re.escape(message)):
        dashboard(run, **arguments)
    assert not Path("view.json").exists()


def test_a_run_that_wandb_does_not_log_says_what_to_do(tmp_path):
    (tmp_path / "config.yaml").write_text("trainer: {logger: {class_path: CSVLogger}}")
    with pytest.raises(InputError, match=r"W&B does not log the run in .*; train with -c configs/logger/wandb.yaml"):
        of_folder(tmp_path)
    (tmp_path / "wandb/run-20260101_000000-a1").mkdir(parents=True)
    with pytest.raises(InputError, match="has no numbers in csv/ yet; wait for its first step"):
        of_folder(tmp_path)


def test_a_run_of_the_server_shows_what_its_summary_has(server):
    table = {"_type": "table-file", "path": "media/table/x.json", "ncols": 1, "nrows": 1}
    summary = {"reward/mean": 0.5, "_step": 3, "made/up": 1.0, "plan/ledger": table, "time/forward": 1.0}
    server.runs["a1"] = summary
    run = of_server("me/project/a1")
    assert run.name == "run brave-run-1" and panels(run) == {
        "reward/mean": "curve",
        "time/forward": "curve",
        "plan/ledger": "table",
    }
    dashboard("me/project/a1")
    [sent] = server.views
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("me", "project", "run brave-run-1")
    with pytest.raises(RunStopped, match=r"W&B did not give the run 'me/project/b2': .*check the path, the key"):
        of_server("me/project/b2")
    with pytest.raises(InputError, match="has logged nothing that a dashboard shows"):
        run_workspace(replace(run, metrics=frozenset({"made/up"}), tables=()))
