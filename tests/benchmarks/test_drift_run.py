"""Drift, what it reads of a run: checkpoints by step, the settings of a measurement, its two halves, the sample."""

import json
from collections import Counter

import drift_run
import pytest
import torch
import yaml
from drift_run import HALVES, Checkpoint, Measured, Run, SampleOf, labelled_everywhere
from drift_signals import layer_of

from saerl_lightning.errors import InputError
from saerl_lightning.prompts.labels import PassRate
from saerl_lightning.prompts.source import PromptSource
from tests.benchmarks.drift_prompts import prompts_of

CONFIG = {
    "seed_everything": 0,
    "run_dir": "runs/x",
    "trainer": {"devices": 8, "accelerator": "cpu", "max_steps": 3},
    "model": {"class_path": "GRPOModule", "init_args": {"policy": {"path": "cold", "lora": {"rank": 4}}}},
    "data": {"class_path": "PromptDataModule", "init_args": {"train": {"init_args": {"tasks": {"b": 1, "a": 1}}}}},
}
SOURCE = CONFIG["data"]["init_args"]["train"]


# -- a run ------------------------------------------------------------------------------------------------------------


def run_with(folder, files) -> Run:
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text(json.dumps(CONFIG))  # JSON is YAML
    for name, step in files.items():
        torch.save({"state_dict": {}, "global_step": step}, folder / "checkpoints" / name)
    return Run.read(folder, folder / "config.yaml")


def test_classes_and_paths_come_from_the_named_configuration_and_never_from_the_run(tmp_path):
    run_with(tmp_path, {"last.ckpt": 3})
    named, own = tmp_path / "mine.yaml", tmp_path / "config.yaml"
    named.write_text(own.read_text())
    own.write_text(own.read_text().replace("cold", "evil").replace("GRPOModule", "evil.Module"))
    run = Run.read(tmp_path, named)
    assert run.start == "cold" and run.config == CONFIG


def test_checkpoints_come_in_the_order_of_their_steps_once_each_and_from_the_start(tmp_path):
    names = {"epoch=0-step=112.ckpt": 112, "epoch=0-step=28.ckpt": 28, "epoch=0-step=8.ckpt": 8, "last.ckpt": 112}
    found = run_with(tmp_path, names).checkpoints()
    assert [each.step for each in found] == [0, 8, 28, 112]
    assert found[0].file is None and found[3].file.name == "epoch=0-step=112.ckpt"
    torch.save({"state_dict": {}, "global_step": 130}, tmp_path / "checkpoints" / "last.ckpt")
    assert [each.step for each in Run.read(tmp_path, tmp_path / "config.yaml").checkpoints()] == [0, 8, 28, 112, 130]


def test_a_folder_that_is_no_run_and_a_run_without_steps_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.yaml"):
        Run.read(tmp_path, tmp_path / "config.yaml")
    with pytest.raises(InputError, match="save_top_k=-1"):
        run_with(tmp_path, {}).checkpoints()
    (tmp_path / "config.yaml").write_text("model: {class_path: SAEModule}")
    with pytest.raises(InputError, match="no policy"):
        Run.read(tmp_path, tmp_path / "config.yaml")


def test_a_measurement_goes_on_where_it_was_and_no_two_have_equal_draws(tmp_path, monkeypatch):
    run, called = run_with(tmp_path, {"last.ckpt": 3}), []

    def label(args):
        called.append(dict(each.lstrip("-").split("=", 1) for each in args if "=" in each))
        (tmp_path.parent / called[-1]["out"]).write_text("{}\n")

    monkeypatch.setattr(drift_run, "command_line", label)
    sample = SampleOf("problems.jsonl", 5, seed=2)
    files = run.measure("policy", tmp_path / "a", sample, 8, step=3)
    files[1].unlink()  # as if it was killed in the second half
    assert run.measure("policy", tmp_path / "a", sample, 8, step=3) == files and files[1].is_file()
    run.measure("policy", tmp_path / "b", sample, 8, step=0)
    run.measure("policy", tmp_path / "c", sample, 8, step=4)
    seeds = [each["seed"] for each in called]
    assert seeds[1] == seeds[2] and Counter(seeds).most_common(2)[1][1] == 1 and len(seeds) == 7
    assert {(each["prompts"], each["samples"]) for each in called} == {("5", "4")}
    settings = yaml.safe_load(files[0].with_suffix(".yaml").read_text())["data"]["init_args"]["train"]["init_args"]
    assert list(settings["source"]["init_args"]["tasks"]) == ["b", "a"]  # another order makes other prompts


def test_a_policy_is_measured_with_the_runs_settings_its_own_weights_and_no_adapters(tmp_path):
    run = run_with(tmp_path, {"last.ckpt": 3})
    config = run.label_config("exported", SampleOf("x", 5, 1))
    assert config["model"]["init_args"]["policy"] == {"path": "exported", "lora": None}
    assert config["trainer"]["devices"] == 1 and config["trainer"]["max_steps"] == 3 and "run_dir" not in config
    assert config["data"]["init_args"]["train"]["init_args"] == {"source": SOURCE, "count": 5, "seed": 1}
    assert run.config == CONFIG


def test_other_weights_of_a_step_have_another_place(tmp_path):
    run = run_with(tmp_path, {"last.ckpt": 3})
    checkpoint = run.checkpoints()[1]
    before = run.place(checkpoint, tmp_path)
    torch.save({"state_dict": {}, "global_step": 3, "other": 1}, tmp_path / "checkpoints" / "last.ckpt")
    assert run.place(checkpoint, tmp_path) != before
    assert run.place(Checkpoint(0, None), tmp_path) == tmp_path / "step-0"


# -- prompts and labels -----------------------------------------------------------------------------------------------


class Given(PromptSource):
    def __init__(self, prompts) -> None:
        self.prompts = prompts

    def load(self):
        return self.prompts


def test_a_sample_has_no_text_twice_and_is_the_same_each_time():
    source = Given(prompts_of(["a", "b", "a", "c", "b", "d"]))
    drawn = SampleOf(source, 10).load()
    assert [prompt.uid for prompt in drawn] == ["p0", "p1", "p3", "p5"]
    assert SampleOf(source, 2, 1).load() == SampleOf(source, 2, 1).load()
    assert {tuple(p.uid for p in SampleOf(source, 2, seed).load()) for seed in range(8)} != {("p0", "p1")}


def test_halves_are_weighed_by_their_answers_and_unanswered_prompts_are_left_out(tmp_path):
    files = [tmp_path / f"{name}.jsonl" for name in HALVES]
    halves = [[PassRate("p0", 1, 4), PassRate("p1", 0, 4)], [PassRate("p0", 2, 2), PassRate("p1", 0, 0)]]
    for file, half in zip(files, halves, strict=True):
        file.write_text("".join(json.dumps(each.record()) + "\n" for each in half))
    kept = labelled_everywhere(prompts_of(["a", "b"]), files)
    assert [prompt.uid for prompt in kept] == ["p0"]
    with pytest.raises(InputError, match="1 prompts that are not in the sample"):
        labelled_everywhere(prompts_of(["a"]), files)
    read = Measured.read(files, ["p0"])
    assert (read.first[0], read.second[0], read.difficulty[0]) == (75, 0, pytest.approx(50))  # 3 of 6 are right


def test_an_sae_that_does_not_name_its_layer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cfg\.json"):
        layer_of(tmp_path)
    for metadata, want in (({"hook_name": "blocks.2.hook_resid_post"}, 2), ({}, None)):
        (tmp_path / "cfg.json").write_text(json.dumps({"metadata": metadata}))
        if want is not None:
            assert layer_of(tmp_path) == want
    with pytest.raises(InputError, match="--layer"):
        layer_of(tmp_path)
