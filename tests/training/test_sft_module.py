"""SFTModule: only the answer's tokens count, and a policy learns to say it."""

from __future__ import annotations

import pytest
import torch

from saerl_lightning.policy.load import Policy
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.training.sft import SFTModule
from tests.training.conftest import ParityReward, data, fit, trainer


def sft(tiny: str, **changes) -> SFTModule:
    adam = lambda params: torch.optim.AdamW(params, lr=3e-3)  # noqa: E731
    settings = {"policy": Policy(tiny), "engine": HFEngine(), "rewards": [ParityReward()], "optimizer": adam}
    return SFTModule(**{**settings, **changes})


def test_the_mask_covers_the_answer_and_its_end_alone(tiny, tmp_path):
    module = sft(tiny, target="= {answer}")
    datamodule = data(batch_size=2)
    fit(module, datamodule, trainer(tmp_path, 1))
    batch = datamodule.pool.batch([0, 15])
    rows = module.rows(batch)
    for row, prompt in enumerate(batch.prompts):
        said = rows.tokens[row][rows.mask[row]].tolist()
        assert module.tokenizer.decode(said) == f"= {prompt.answer}<|im_end|>"
        assert rows.tokens[row, : len(batch.ids[row])].tolist() == batch.ids[row]


def test_the_loss_is_the_mean_over_answer_tokens(tiny, tmp_path):
    """The logged first loss equals cross-entropy computed by transformers itself on the same rows."""
    module, datamodule = sft(tiny, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)), data()
    run = trainer(tmp_path, 1)
    fit(module, datamodule, run)
    rows = module.rows(datamodule.pool.batch(datamodule.plan.batches()[0].tolist()))
    labels = torch.where(rows.mask, rows.tokens, -100)
    expected = module.model(rows.tokens, labels=labels).loss
    assert float(run.callback_metrics["loss"]) == pytest.approx(expected.item(), abs=1e-5)


def test_the_loss_falls(tiny, tmp_path):
    run = trainer(tmp_path, 60)
    fit(sft(tiny, warmup_steps=5), data(), run)
    assert float(run.callback_metrics["loss"]) < 1.0  # a random policy starts at log(280) = 5.6
