"""Every shipped config parses and makes its objects, in the combination it is meant for; no model is loaded."""

from pathlib import Path

import lightning
import pytest
import torch
import yaml

from saerl_lightning import cli

CONFIGS = Path(__file__).parents[2] / "configs"
STUDIES = CONFIGS / "study"  # lists of runs, and no run: tests/study has them
EVERY = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if STUDIES not in path.parents)


BELOW = {
    "demo": ["demo/tasks.yaml"],
    "ablate": ["grpo.yaml", "saerl.yaml"],
    "paper": ["grpo.yaml", "saerl.yaml"],
    "sae": ["sae/topk.yaml"],
}
OWN_STAND = {
    "evaluate.yaml": ["evaluate.yaml", "model/smollm2_135m.yaml"],
    "recipe/planned_1.5b.yaml": ["grpo.yaml", "saerl.yaml", "recipe/planned_1.5b.yaml"],
    "demo/tasks.yaml": ["demo/tasks.yaml", "demo/grpo.yaml"],
    "demo/saerl.yaml": ["demo/tasks.yaml", "demo/grpo.yaml", "demo/saerl.yaml"],
    "demo/study.yaml": ["demo/tasks.yaml", "demo/grpo.yaml", "demo/study.yaml"],
    "demo/sae.yaml": ["sae/topk.yaml", "demo/sae.yaml"],
    "paper/qwen2.5_math_7b.yaml": ["grpo.yaml", "paper/qwen2.5_math_1.5b.yaml", "paper/qwen2.5_math_7b.yaml"],
}


def combination(name: str) -> list[str]:
    """The config behind what it stands on."""
    if name in OWN_STAND:
        return OWN_STAND[name]
    below = BELOW.get(name.rpartition("/")[0], ["grpo.yaml"])
    return [each for each in below if each != name] + [name]


@pytest.mark.parametrize("name", EVERY)
def test_a_shipped_config_parses_and_makes_its_objects(monkeypatch, tmp_path, name):
    monkeypatch.setattr(cli.RunCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setenv("WANDB_MODE", "offline")  # a run that logs there is refused without a key
    monkeypatch.chdir(tmp_path)
    files = [part for each in combination(name) for part in ("-c", str(CONFIGS / each))]
    made = cli.run(["fit", *files, "--trainer.accelerator=cpu"])
    assert isinstance(made.model, lightning.LightningModule)
    assert isinstance(made.datamodule, lightning.LightningDataModule)
    assert isinstance(made.trainer, lightning.Trainer)
    assert not list(tmp_path.iterdir())  # constructors write nothing


@pytest.mark.parametrize("name", EVERY)
def test_weights_that_are_trained_are_float32(name):
    """On GPUs under bf16-mixed; cards share what does not fit one of them."""
    config = yaml.safe_load((CONFIGS / name).read_text()) or {}
    policy = (config.get("model") or {}).get("init_args", config.get("model") or {}).get("policy") or {}
    assert policy.get("dtype", "float32") == "float32" or policy.get("lora")
    assert (config.get("trainer") or {}).get("precision", "32-true") in ("32-true", "bf16-mixed")
    if "7b" in name or "8b" in name:
        assert config["trainer"]["strategy"] == "sharded"


def test_the_config_a_run_leaves_behind_repeats_it(trained, tmp_path):
    config = trained.workplace.run_dir / "config.yaml"
    again = cli.run(["fit", "-c", str(config), f"--run_dir={tmp_path / 'again'}"])
    assert again.trainer.global_step == 4
    weights = again.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in trained.cli.model.state_dict().items())
