"""A study in W&B: what its runs leave on disk offline, and the dashboard, up to what is sent over HTTP."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.study.dashboard.panels import STEP, LoggedStudy, sections
from saerl_lightning.study.dashboard.workspace import dashboard, logged_study, save, view_json, workspace
from saerl_lightning.study.folder import resolve
from saerl_lightning.study.plan import OWN_FLAGS
from saerl_lightning.study.processes import SubprocessExecutor
from saerl_lightning.study.results import StudyResults
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.tools.study import run_study
from tests.cli.conftest import BASELINE, record, write_prompts
from tests.cli.wandb_offline import OfflineRun

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces' import
ROOT = Path(__file__).parents[2]
SLOTS = {
    "signals": {"class_path": "RandomSignals", "init_args": {"columns": 8}},
    "reference": {"class_path": "CorruptedCopies"},
    "filtering": {"class_path": "QualityFilter", "init_args": {"label": "quality", "drop": 0.1}},
    "clustering": {"class_path": "KMeansClusters", "init_args": {"clusters": 2}},
    "curriculum": {"class_path": "EasyToHard", "init_args": {"label": "difficulty"}},
    "mixing": {"class_path": "TailMixing", "init_args": {"fraction": 0.5}},
}


def small_study(workplace, folder: Path) -> Path:
    """Two arms and one seed of two steps: everything that can be logged is switched on in the second arm."""
    write_prompts(workplace.train, [record(i) for i in range(40)])
    (folder / "slots.yaml").write_text(json.dumps({"data": {"init_args": SLOTS}}))
    given_flags = workplace.command("fit", workplace.with_dev(), "--trainer.val_check_interval=2")[1 + len(BASELINE) :]
    study = {
        "name": "small",
        "base": [*(part for part in BASELINE if part != "-c"), str(ROOT / "configs/logger/wandb.yaml")],
        "flags": [flag for flag in given_flags if flag.removeprefix("--").partition("=")[0] not in OWN_FLAGS],
        "arms": {
            "grpo": {},
            "saerl": {"configs": [str(folder / "slots.yaml")], "flags": ["--model.objective.kl={weight: 0.1}"]},
        },
        "seeds": [7],
        "budget": {"steps": 2},
        "baseline": "grpo",
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


# -- the runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_studys_runs_read_back_offline(workplace, tmp_path, monkeypatch):
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    path = small_study(workplace, tmp_path)
    spec, out = StudySpec.read(path), tmp_path / "out"
    code = run_study(spec, path, out, 2, SubprocessExecutor())
    assert code == 0, [run.error for run in StudyResults.read(out).runs]
    study = logged_study(spec, resolve(spec, out))
    shows = {panel.shows: panel.kind for section in sections(study) for panel in section.panels}

    found = {arm: OfflineRun(out / arm / "seed-7") for arm in spec.arms}
    for arm, logged in found.items():
        run = logged.run
        assert (run.run_group, run.job_type, run.display_name) == ("small", arm, f"{arm}/seed-7")
        assert (list(run.tags), run.project) == ([arm, "seed-7"], "saerl_lightning")
        assert logged.config == yaml.safe_load((out / arm / "seed-7/config.yaml").read_text())
        assert [row[STEP] for row in logged.history if "reward/mean" in row] == [0, 1]
        assert [row[STEP] for row in logged.history if spec.metric in row] == [0, 1]  # before a step, and after both
    assert found["saerl"].config["model"]["init_args"]["objective"]["init_args"]["kl"]["weight"] == 0.1

    names = {arm: {name for row in logged.history for name in row} for arm, logged in found.items()}
    plotted = {name for name, kind in shows.items() if kind != "table"}
    assert not plotted - names["saerl"]
    absent = plotted - names["grpo"]  # what the operations and the reference log, and nothing else
    assert {name for name in absent if not name.startswith("data/")} == {"policy/kl", "time/reference"}

    tables = {name for name, kind in shows.items() if kind == "table"}
    assert tables == set(found["saerl"].tables) and "completions/step_1" in tables
    ledger = found["saerl"].tables["plan/ledger"]
    fates = [row[ledger["columns"].index("fate")] for row in ledger["data"]]
    assert len(fates) == 40 and fates.count("dropped") == 4
    completions = found["grpo"].tables["completions/step_1"]
    assert len(completions["data"]) == 8 and "completion" in completions["columns"]


# -- the dashboard -----------------------------------------------------------------------------------------------------

LOGGED = LoggedStudy(
    "demo",
    ["grpo", "saerl"],
    "grpo",
    3,
    "val/macro/avg@k",
    {"dev": 8},
    ["mixing"],
    tables=["plan/ledger", "completions/step_1"],
)


def runset(text: str) -> dict:
    return json.loads(text)["spec"]["section"]["runSets"][0]


def test_the_view_is_read_back_by_the_librarys_own_models():
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.internal import View

    text = view_json(workspace(LOGGED, "team", "project"))
    assert runset(text)["filters"]["filters"] == [
        {"key": {"section": "run", "name": "group"}, "op": "=", "value": "demo", "disabled": False}
    ]
    assert runset(text)["grouping"] == [{"section": "run", "name": "jobType"}]
    again = Workspace._from_model(View.model_validate_json(text))
    assert view_json(again) == text and (again.entity, again.project) == ("team", "project")
    assert again.runset_settings.group_colors == LOGGED.colours
    wanted = sections(LOGGED)
    assert [section.name for section in again.sections] == [section.title for section in wanted]
    for section, plan in zip(again.sections, wanted, strict=True):
        for panel, given_panel in zip(section.panels, plan.panels, strict=True):
            if given_panel.kind == "table":
                assert panel.table_name == given_panel.shows
                continue
            plotted = panel.y if given_panel.kind == "curve" else panel.metrics
            assert [each.name for each in plotted] == [given_panel.shows]
            assert (panel.groupby_aggfunc, panel.groupby_rangefunc) == ("mean", "minmax")
            assert given_panel.kind == "bars" or panel.x.name == STEP
    assert again.settings.max_runs == 10 and again.settings.x_axis == STEP


@settings(max_examples=30)
@given(st.text(min_size=1, max_size=12))
def test_a_name_is_filtered_for_as_it_is_or_refused(name):
    study = LoggedStudy(name, ["a"], "a", 1, "reward/mean")
    try:
        built = workspace(study, "", "p")
    except InputError:
        assert not re.fullmatch(r"[A-Za-z0-9_ -]+", name)
        return
    assert runset(view_json(built))["filters"]["filters"][0]["value"] == name


def test_without_a_key_it_is_written_to_a_file(workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    path = small_study(workplace, tmp_path)
    dashboard(str(path))
    written = Path("runs/study/small.dashboard.json")
    said = capsys.readouterr().out
    assert f"wrote {written}; nothing was sent" in said and "WandbLogger" not in said
    shown = json.dumps(json.loads(written.read_text()))
    for name in ("val/dev/avg@2", "data/filtering/probe/auc", "policy/kl", "policy/correction_mean", "plan/clusters"):
        assert f'"{name}"' in shown
    assert '"completions/step_1"' in shown and '"completions/step_50"' not in shown  # the study ends before
    given_study = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**given_study, "base": given_study["base"][:-1]}))
    dashboard(str(path), out="other.json")
    assert "the study has no WandbLogger" in capsys.readouterr().out and Path("other.json").is_file()


def test_without_a_key_neither_runs_nor_a_named_entity_are_begun(workplace, tmp_path, monkeypatch):
    import wandb

    for name in ("MODE", "API_KEY", "IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    path = small_study(workplace, tmp_path)
    with pytest.raises(
        InputError, match="the arm 'grpo' has a WandbLogger, but there is no W&B key; set WANDB_API_KEY"
    ):
        run_study(StudySpec.read(path), path, tmp_path / "out", 2, SubprocessExecutor())
    with pytest.raises(InputError, match="entity is 'team', but there is no W&B key"):
        dashboard(str(path), entity="team")
    assert not list((tmp_path / "out").glob("*")) and not Path("runs").exists()


BAD = {
    "no study": ({"study": "none.yaml"}, "the study 'none.yaml' can't be read"),
    "a path": ({"study": "s", "entity": "team/project"}, "entity is 'team/project'; write a name of letters"),
    "nothing": ({"study": "s", "entity": ""}, "entity is ''"),
    "an address": ({"study": "s", "project": "https://wandb.ai/me/p"}, "project is 'https"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_at_the_door(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        dashboard(**arguments)


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_with_a_key_it_is_saved_and_its_address_given(server):
    from wandb_workspaces.workspaces.internal import WorkspaceViewspec

    built = workspace(LOGGED, "", "saerl_lightning")  # the key's own entity
    address = save(built)
    [sent] = server.views
    assert re.fullmatch(rf"{server.address}/me/saerl_lightning\?nw=\w+", address)
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("me", "saerl_lightning", "study demo")
    assert json.loads(sent["spec"]) == json.loads(view_json(built))["spec"]
    assert WorkspaceViewspec.model_validate_json(sent["spec"]).section.run_sets[0].grouping[0].name == "jobType"
    with pytest.raises(RunStopped, match=r"did not take the dashboard for strangers/p: .*permission denied"):
        save(workspace(LOGGED, "strangers", "p"))
