"""The demo's SAE fits its small policy: few dead features, and no score where the layer earns nothing."""

import csv
import math
from pathlib import Path

import pytest
import torch

from saerl_lightning import cli
from saerl_lightning.tools.demo import TASKS, prompts_of, tiny_policy
from saerl_lightning.tools.export import export

ROOT = Path(__file__).parents[2]
SFT, SAE = "configs/demo/sft.yaml", "configs/demo/sae.yaml"
LAYER = 2  # of configs/demo/sae.yaml


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The 'utils' module:DeprecationWarning")  # on import of sae_lens
def test_the_demos_sae_has_few_dead_features_and_no_score_where_the_layer_earns_nothing(tmp_path, monkeypatch):
    """As the demo makes it, after a quarter of its supervised steps; features that fire are counted by plain transformers.

    The policy is trained on answers alone, so the prompts' own text is as likely without the layer.
    """
    monkeypatch.chdir(ROOT)
    policy, cold, sae = (str(tmp_path / name) for name in ("policy", "cold", "sae"))
    tiny_policy(policy)
    quiet = ["--seed_everything=0", "--trainer.enable_progress_bar=false", "--trainer.callbacks=null"]
    taught = [f"--model.policy.path={policy}", f"--run_dir={tmp_path / 'sft'}", "--trainer.max_steps=100"]
    cli.run(["fit", "-c", TASKS, "-c", SFT, *quiet, *taught, "--trainer.limit_val_batches=0"])
    export(str(tmp_path / "sft/checkpoints/last.ckpt"), cold, policy)
    read = [f"--data.model.path={cold}", f"--model.save_to={sae}", f"--run_dir={tmp_path / 'run'}"]
    cli.run(["fit", "-c", "configs/sae/topk.yaml", "-c", SAE, *quiet, *read])
    with (tmp_path / "run/csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    judged = {name: float(value) for name, value in rows[-1].items() if name.startswith("val/")}
    assert judged["val/ce_zeroed"] <= judged["val/ce_clean"]
    assert math.isnan(judged["val/ce_score"])
    assert float(rows[-2]["sae/dead_share"]) < 0.05
    never_fired, explained = counted(cold, sae)
    assert never_fired < 0.05 and explained > 0.9


@torch.no_grad()
def counted(model: str, sae: str) -> tuple[float, float]:
    """The share of features that fire on none of 500 prompts, and the explained variance there."""
    from sae_lens import SAE as SavedSAE
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    texts = [
        tokenizer.apply_chat_template(list(each.messages), add_generation_prompt=True, return_dict=True)["input_ids"]
        for each in prompts_of(TASKS, "train")[:500]
    ]
    states = [policy(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0] for ids in texts]
    x, saved = torch.cat(states), SavedSAE.load_from_disk(sae)
    features = saved.encode(x)
    explained = 1 - (x - saved.decode(features)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    return float(((features > 0).sum(0) == 0).double().mean()), float(explained)
