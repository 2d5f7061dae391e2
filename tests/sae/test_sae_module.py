"""SAEs under Lightning: what is served, what is saved, what is logged, and that a resumed run is the same run."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import lightning
import pytest
import torch

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.sae.activations import BlockLoader
from saerl_lightning.sae.architecture import build, inference
from saerl_lightning.sae.batch_top_k import BatchTopKOverRanks
from saerl_lightning.sae.module import SAEModule
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.training.checkpoints import RunCheckpoint
from tests.sae.small_sae import LAYER, SPARSE, DoubleSAEModule, data, module
from tests.training.conftest import data as prompt_data
from tests.training.conftest import fit, trainer

pytestmark = pytest.mark.filterwarnings("ignore:The 'utils' module:DeprecationWarning")  # on import of sae_lens
SCRIPT = Path(__file__).with_name("sae_ranks.py")
ARCHITECTURES = [
    ("topk", {"k": 4}),
    ("topk", {"k": 4, **SPARSE}),
    ("batchtopk", {"k": 4}),
    ("jumprelu", {"l0_coefficient": 0.1}),
    ("standard", {"l1_coefficient": 0.1}),
]


# -- training --------------------------------------------------------------------------------------------------------------


def acts_in_training(sae: SAEModule, x: torch.Tensor, saved) -> torch.Tensor:
    """Activations of the SAE as it was trained, in the units of the folded one, by each architecture's own definition.

    Of BatchTopK's threshold the saved one is taken, for it is set anew.
    """
    with torch.no_grad():
        if sae.architecture != "batchtopk":
            acts = sae.sae.encode(x * sae.scale)
            acts = acts.to_dense() if acts.is_sparse else acts
            return acts / sae.scale if getattr(sae.sae.cfg, "rescale_acts_by_decoder_norm", False) else acts
        _, before = sae.sae.encode_with_hidden_pre(x * sae.scale)
        assert len(saved.threshold.unique()) == 1
        return before * (before > saved.threshold[0] * sae.scale) / sae.scale


@pytest.mark.parametrize(("architecture", "options"), ARCHITECTURES)
def test_every_architecture_learns_and_reloads_with_the_same_encodings(tiny, tmp_path, architecture, options):
    from sae_lens import SAE

    sae = module(architecture=architecture, options=options, save_to=str(tmp_path / "out" / "sae"))
    served = data(tiny)
    run = trainer(tmp_path / "run", 60, log_every_n_steps=20, val_check_interval=60, check_val_every_n_epoch=None)
    fit(sae, served, run)
    x = served.first_block()
    loaded = SAE.load_from_disk(tmp_path / "out" / "sae")
    expected = acts_in_training(sae, x, loaded)
    assert (loaded.encode(x) - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
    assert ((loaded.encode(x) > 0) == (expected > 0)).float().mean() > 0.9999
    reconstructed = 1 - (loaded(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert reconstructed > 0.5
    logged = run.callback_metrics
    assert {
        "loss",
        "sae/l0",
        "sae/explained_variance",
        "sae/dead_share",
        "sae/density/median_log10",
        "optim/lr",
    } <= set(logged)
    assert {"val/l0", "val/explained_variance", "val/ce_clean", "val/ce_zeroed", "val/ce_score"} <= set(logged)
    assert float(logged["sae/explained_variance"]) > 0.5
    if "topk" in architecture:
        # Equal activations at the edge of a batch's top-k are all kept: prompts that begin alike have some.
        assert float(logged["sae/l0"]) == pytest.approx(4.0, rel=0.0 if architecture == "topk" else 0.01)
        assert float(logged["val/l0"]) == pytest.approx(4.0, rel=0.0 if architecture == "topk" else 0.05)
    norms = (x * sae.scale).norm(dim=1)
    assert float(sae.scale) > 0 and 0.8 < float(norms.mean()) / math.sqrt(x.shape[1]) < 1.2
    written = json.loads((tmp_path / "out" / "sae" / "cfg.json").read_text())["metadata"]
    assert written["model_name"] == tiny
    assert written["hook_name"] == "blocks.0.hook_resid_post"
    assert written["layer"] == 0
    assert written["training_tokens"] == 60 * 32
    assert written["frozen_decoder"] is False
    assert written["explained_variance"] == pytest.approx(float(logged["val/explained_variance"]))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sae"]  # nothing half-written beside it


def test_a_batch_s_top_k_keeps_all_that_equal_the_least():
    """By hand: 1.5 a position of 2 keeps 3 of 6 numbers, 3, 2 and the two equal ones of 1; nothing below 0 counts."""
    chosen = BatchTopKOverRanks(1.5, ranks=1)
    kept = chosen(torch.tensor([[3.0, 1.0, -5.0], [1.0, 2.0, 0.5]]))
    assert kept.tolist() == [[3, 1, 0], [1, 2, 0]]
    assert chosen.least == 1
    assert chosen(torch.full((2, 3), -1.0)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_validation_judges_the_saved_sae(tiny, tmp_path):
    """Explained variance and l0 over the distinct held-out positions, computed anew from the folder alone."""
    from sae_lens import SAE

    sae, served = module(architecture="batchtopk", save_to=str(tmp_path / "sae")), data(tiny)
    run = trainer(tmp_path, 20, val_check_interval=20, check_val_every_n_epoch=None)
    fit(sae, served, run)
    assert float(sae.sae.topk_threshold) < 0.25 * float(
        saved_threshold(tmp_path / "sae") * sae.scale
    )  # still on its way
    loaded, whole = SAE.load_from_disk(tmp_path / "sae"), served.model.load_whole()
    seen = {}
    for row in served.held_out:
        with torch.no_grad():
            states = whole(torch.tensor([row]), output_hidden_states=True).hidden_states[LAYER + 1][0]
        seen |= {tuple(row[: i + 1]): states[i] for i in range(1, len(row))}
    x = torch.stack(list(seen.values()))
    acts = loaded.encode(x).detach()
    explained = 1 - (loaded.decode(acts).detach() - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert float(run.callback_metrics["val/explained_variance"]) == pytest.approx(float(explained), abs=1e-4)
    assert float(run.callback_metrics["val/l0"]) == pytest.approx(float((acts > 0).sum(1).float().mean()), abs=1e-2)
    assert float((acts > 0).sum(1).float().mean()) == pytest.approx(4, rel=0.05)


def saved_threshold(folder: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(folder / "sae_weights.safetensors")["threshold"][0]


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_without_held_out_text_the_threshold_is_set_on_what_is_in_memory(tiny, tmp_path, architecture):
    from sae_lens import SAE

    options = {"k": 4, **({"matryoshka_widths": [24, 96]} if "matryoshka" in architecture else {})}
    sae = module(architecture=architecture, options=options, save_to=str(tmp_path / "sae"))
    served = data(tiny, validation=0.0)
    fit(sae, served, trainer(tmp_path, 10))
    active = (SAE.load_from_disk(tmp_path / "sae").encode(served.first_block()) > 0).sum(1).float().mean()
    assert float(active) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("options", [{}, SPARSE])
def test_a_frozen_decoder_keeps_its_start_and_says_so(tiny, tmp_path, options):
    sae = module(freeze_decoder=True, options={"k": 4, **options}, save_to=str(tmp_path / "sae"))
    fit(sae, data(tiny), trainer(tmp_path, 10))
    start = build("topk", 64, 96, {"k": 4}, seed=0)
    assert torch.equal(sae.sae.W_dec, start.W_dec)
    assert not torch.equal(sae.sae.W_enc, start.W_enc)
    assert not torch.equal(sae.sae.b_enc, start.b_enc)
    assert json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"]["frozen_decoder"] is True


class Stop(lightning.Callback):
    """A run that ends behind a step as if killed: nothing is saved any more."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu"])
def test_a_resumed_run_is_the_same_run(tiny, tmp_path, architecture):
    """Killed at step 13 of an epoch of more, checkpoint at 12; blocks change inside the run, and validation runs too."""
    options = {"batchtopk": {"k": 4}, "jumprelu": {"l0_warm_up_steps": 20}}[architecture]

    def run(folder, *callbacks, ckpt=None, steps=30):
        sae = module(architecture=architecture, options=options, save_to=str(tmp_path / folder / "sae"), dead_after=150)
        served = data(tiny, token_limit=850)
        saver = RunCheckpoint(dirpath=tmp_path / folder, save_last=True, save_top_k=0, every_n_train_steps=4)
        settings = {"enable_checkpointing": True, "val_check_interval": 10, "check_val_every_n_epoch": None}
        made = trainer(tmp_path / folder, steps, (saver, *callbacks), **settings)
        try:
            fit(sae, served, made, ckpt_path=ckpt)
        except (KeyboardInterrupt, SystemExit):
            assert callbacks
        return sae, made, served

    whole, whole_run, served = run("whole")
    loader = served.train_dataloader()
    assert 13 < len(loader) < 30 and len(loader.blocks) > 1  # the run goes over an epoch's end
    run("killed", Stop(13))
    assert not (tmp_path / "killed" / "sae").exists()
    again, again_run, _ = run("killed", ckpt=tmp_path / "killed" / "last.ckpt")
    assert again_run.global_step == 30
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    one, two = (each.optimizers[0].state_dict()["state"] for each in (whole_run, again_run))
    assert all(torch.equal(one[p][name], two[p][name]) for p in one for name in one[p])
    assert whole_run.lr_scheduler_configs[0].scheduler.state_dict()["last_epoch"] == 30
    saved = [(tmp_path / folder / "sae" / "sae_weights.safetensors").read_bytes() for folder in ("whole", "killed")]
    assert saved[0] == saved[1]
    if architecture == "batchtopk":  # killed between its last checkpoint and its folder, it has no step left
        config = (tmp_path / "killed/sae/cfg.json").read_text()
        shutil.rmtree(tmp_path / "killed/sae")
        run("killed", ckpt=tmp_path / "killed" / "last.ckpt")
        assert (tmp_path / "killed/sae/sae_weights.safetensors").read_bytes() == saved[0]
        assert (tmp_path / "killed/sae/cfg.json").read_text() == config


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_two_ranks_descend_on_their_joined_batches(tiny, tmp_path, architecture):
    """Two processes end on the weights of one that is served both shares, and count dead features together."""
    root = SCRIPT.parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), tiny, str(tmp_path / "out"), "2", architecture]
    done = subprocess.run(command, env=environment, cwd=root, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    zero, one = (torch.load(tmp_path / f"out.{rank}.pt", weights_only=True) for rank in (0, 1))
    for part in ("weights", "activity"):
        assert all(torch.equal(zero[part][name], one[part][name]) for name in zero[part]), part
    assert not any(torch.equal(a, b) for a, b in zip(zero["batches"], one["batches"], strict=True))

    class Joined(BlockLoader):
        def batch(self, step):
            return torch.cat([zero["batches"][step], one["batches"][step]])

        def first(self):
            return torch.cat([zero["first"], one["first"]])

    sae = module(DoubleSAEModule, architecture=architecture, save_to=str(tmp_path / "sae"), dead_after=100)
    served = data(tiny)
    served.setup("fit")
    served._loader = Joined([[[0]]], [1000], 32, lambda ids: torch.zeros(0))
    run = trainer(tmp_path, 6, log_every_n_steps=2, limit_val_batches=0)
    fit(sae, served, run)
    assert float(sae.scale) == pytest.approx(float(zero["scale"]), rel=1e-12)
    for name, tensor in sae.sae.state_dict().items():
        torch.testing.assert_close(tensor, zero["weights"][name], rtol=0, atol=1e-12, msg=name)
    for name, tensor in sae.activity.state_dict().items():
        assert torch.equal(tensor, zero["activity"][name]), name
    assert float(run.callback_metrics["sae/explained_variance"]) == pytest.approx(
        zero["logged"]["sae/explained_variance"], abs=1e-6
    )
    assert (tmp_path / "out-sae" / "cfg.json").is_file()


def test_training_continues_in_the_units_of_the_checkpoint(tiny, tmp_path):
    """The scale is measured once: `validate` from a checkpoint judges with the stored one, and harvests nothing."""
    sae = module(save_to=str(tmp_path / "sae"))
    run = trainer(tmp_path, 5)
    fit(sae, data(tiny), run)
    run.save_checkpoint(tmp_path / "a.ckpt")
    other, served = module(save_to=str(tmp_path / "sae")), data(tiny)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        found = trainer(tmp_path, 5).validate(other, served, ckpt_path=tmp_path / "a.ckpt", verbose=False)[0]
    assert torch.equal(other.scale, sae.scale)
    assert served.harvester._forward is None
    assert found["val/explained_variance"] > 0


# -- refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "topq"}, "no SAE architecture 'topq'; write one of .*batchtopk.*topk"),
        ({"options": {"kk": 3}}, r"'topk' has no option kk; it has .*k \(100\)"),
        ({"options": {"k": "many"}}, "an option of 'topk' does not fit: .*many"),
        ({"options": {"k": 97}}, "option k is 97, but the SAE has 96 features"),
        ({"options": {"d_in": 3}}, "no option d_in"),
        ({"options": {"k": 4, "use_sparse_activations": True}}, "write rescale_acts_by_decoder_norm: false beside it"),
        ({"d_sae": 0}, r"SAEModule\.d_sae is 0; write a whole number from 1"),
        (
            {"architecture": "jumprelu", "options": {"jumprelu_sparsity_loss_mode": "quadratic"}},
            "target_l0 must be set",
        ),
    ],
)
def test_impossible_settings_of_an_sae_are_refused(tiny, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        fit(module(**changes), data(tiny), trainer(tmp_path, 1))


def test_what_is_no_sae_is_not_replaced(tiny, tmp_path):
    place = tmp_path / "precious"
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds no SAE \(no cfg.json\)"):
        fit(module(save_to=str(place)), data(tiny), trainer(tmp_path, 1))
    assert (place / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InputError, match=r"holds no SAE \(no cfg.json\)"):
        fit(module(save_to=str(place), replace=True), data(tiny), trainer(tmp_path, 1))
    (place / "thesis.txt").rename(place / "cfg.json")
    with pytest.raises(InputError, match=r"holds an SAE; write another --model.save_to, or --model.replace true"):
        fit(module(save_to=str(place)), data(tiny), trainer(tmp_path, 1))
    assert (place / "cfg.json").read_text() == "years of work"
    fit(module(save_to=str(place), replace=True), data(tiny), trainer(tmp_path, 1))
    assert sorted(path.name for path in place.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_other_checkpoints_and_other_data_are_refused(tiny, tmp_path):
    run = trainer(tmp_path, 3)
    fit(module(save_to=str(tmp_path / "sae")), data(tiny), run)
    run.save_checkpoint(path := tmp_path / "a.ckpt")
    prompts = prompt_data()
    prompts.tokenizer = ReadModel(tiny, LAYER).load_tokenizer()
    refusals = [
        (module(d_sae=95), data(tiny), r"another SAE: activity.fired is \(96,\) there and \(95,\) here"),
        (module(), data(tiny, seed=1), "this run's are .*: the prompts, the model"),
        (module(), prompts, "data is PromptDataModule; write data: ActivationDataModule"),
    ]
    for sae, served, message in refusals:
        with pytest.raises(InputError, match=message):
            fit(sae, served, trainer(tmp_path / "b", 4), ckpt_path=path)


def test_a_gradient_that_is_no_number_stops_the_run(tiny, tmp_path):
    sae = module(save_to=str(tmp_path / "sae"))

    class Poison(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                self.before = pl_module.sae.W_enc.detach().clone()
                batch[0, 0] = math.nan

    poison = Poison()
    with pytest.raises(RunStopped, match="gradient norm is nan at step 2"):
        fit(sae, data(tiny), trainer(tmp_path, 5, (poison,)))
    assert torch.equal(poison.before, sae.sae.W_enc)
    assert not (tmp_path / "sae").exists()


def test_folding_leaves_the_training_sae_alone(tiny):
    sae = build("batchtopk", 8, 16, {"k": 2}, 0)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    inference(sae, 3.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())
    assert sae.cfg.normalize_activations == "none"
