"""GRPOModule under a real Trainer with a real (tiny) policy."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.objective import Objective
from saerl_lightning.objective.terms import KLPenalty, SamplerCorrection
from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.policy.logprobs import score
from saerl_lightning.policy.weights import base_model, named_weights
from saerl_lightning.records import Sampling
from saerl_lightning.reward.reward import Reward
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.training.guard import MismatchGuard
from tests.training.conftest import ParityReward, Sums, data, fit, largest_difference, module, sgd, trainer, weights

SPLITS = {1: 100_000, 2: 480, 4: 250, 8: 130}  # micro-batches wanted of the 32 rows -> tokens that give about as many


class Record(lightning.Callback):
    """Keeps what was logged at each step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, *_):
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def one_step(tiny, folder, **changes):
    return weights(fit(module(tiny, **changes), data(), trainer(folder, 1)))


@pytest.mark.parametrize("objective", [GRPO(), GRPO(kl=KLPenalty(0.5))])
def test_a_step_is_the_same_for_any_micro_batch_split(tiny, tmp_path, objective):
    """One SGD step of rate 0.5 in 1, 2, 4 and 8 micro-batches: the weights agree to 1e-6, and did move."""
    start = weights_of(tiny)
    whole = one_step(tiny, tmp_path, objective=objective, micro_tokens=SPLITS[1])
    assert largest_difference(whole, start) > 1e-3
    for budget in list(SPLITS.values())[1:]:
        assert largest_difference(one_step(tiny, tmp_path, objective=objective, micro_tokens=budget), whole) < 1e-6


def weights_of(tiny):
    return Policy(tiny).load_model().state_dict()


def test_reward_rises(tiny, tmp_path):
    """Forty steps on a reward that half the first tokens earn: the last ten batches earn far more."""
    record = Record()
    adam = lambda params: torch.optim.AdamW(params, lr=3e-3)  # noqa: E731
    fit(module(tiny, optimizer=adam), data(), trainer(tmp_path, 40, (record,)))
    rewards = [row["reward/mean"] for row in record.rows]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:5]) / 5 + 0.25, rewards


def test_metrics_of_a_step(tiny, tmp_path):
    """The logged numbers follow from the step's own rollouts."""
    record = Record()
    grpo = module(tiny)
    fit(grpo, data(), trainer(tmp_path, 1, (record,)))
    row, step = record.rows[0], grpo.last_step
    varied = (step.total.amax(1) > step.total.amin(1)).sum().item()
    assert row["groups/zero_variance_frac"] == pytest.approx(1 - varied / 4)
    assert row["groups/tokens_per_effective"] == pytest.approx(step.rollouts.mask.sum().item() / varied)
    assert row["completions/truncated_frac"] == pytest.approx(step.rollouts.truncated.float().mean().item())
    assert row["policy/ratio_mean"] == pytest.approx(1.0) == row["policy/ratio/max"]
    assert row["sampler/mismatch_mean"] < 1e-5
    assert row["rollouts/staleness"] == 0
    assert {f"time/{p}" for p in ("generate", "score", "forward", "backward", "optimizer", "sync")} <= row.keys()
    assert 0 < row["policy/entropy"] < 6


def test_on_policy_loss_is_zero_but_its_gradient_is_not(tiny, tmp_path):
    """Rows of equal length: advantages of a group sum to zero, so does the loss; the gradient does not."""
    record = Record()
    fit(module(tiny, sampling=Sampling(group_size=8, max_tokens=1, seed=1)), data(), trainer(tmp_path, 1, (record,)))
    assert record.rows[0]["loss"] == pytest.approx(0, abs=1e-6)
    assert record.rows[0]["optim/grad_norm"] > 1e-3


def test_later_updates_leave_the_sampler_behind(tiny, tmp_path):
    """With three updates a batch the ratio leaves 1 and every update is an optimiser step."""
    record = Record()
    grpo = fit(module(tiny, updates_per_batch=3), data(), trainer(tmp_path, 6, (record,)))
    assert grpo.global_step == 6
    assert len(record.rows) == 2
    assert record.rows[0]["policy/ratio/max"] > 1.01


class HalfFailing(ParityReward):
    """The grader of every second completion fails."""

    def __call__(self, prompts, rollouts):
        scores = super().__call__(prompts, rollouts)
        scores[:, ::2] = float("nan")
        return scores


def test_completions_of_failed_graders_are_not_trained_on(tiny, tmp_path):
    record = Record()
    grpo = fit(module(tiny, rewards=[HalfFailing()]), data(), trainer(tmp_path, 1, (record,)))
    step = grpo.last_step
    assert record.rows[0]["reward/half_failing/failed_frac"] == 0.5
    assert step.advantages[:, ::2].eq(0).all()
    graded = step.total[:, 1::2]
    assert record.rows[0]["reward/mean"] == pytest.approx(graded.mean().item())


def test_two_rewards_are_weighted(tiny, tmp_path):
    class Always(Reward):
        weight = 0.5

        def __call__(self, prompts, rollouts):
            return torch.ones(len(prompts), rollouts.group_size)

    grpo = fit(module(tiny, rewards=[ParityReward(), Always()]), data(), trainer(tmp_path, 1))
    torch.testing.assert_close(grpo.last_step.total, grpo.last_step.rewards["parity"] + 0.5)


class NotANumber(Objective):
    """A loss that is NaN from the third step on."""

    def __init__(self) -> None:
        self.steps = 0

    def advantages(self, rewards):
        return rewards - rewards.mean(1, keepdim=True)

    def __call__(self, inputs):
        self.steps += 1
        return inputs.logprobs.sum() * (float("nan") if self.steps > 2 else 1e-6), {}


def test_nan_stops_before_the_step_and_names_the_batch(tiny, tmp_path):
    grpo = module(tiny, objective=NotANumber())
    keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    with pytest.raises(RunStopped, match=r"nan.*sum/\d\+\d"):
        fit(grpo, data(), trainer(tmp_path, 6, (keep,), enable_checkpointing=True))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert all(t.isfinite().all() for t in saved["state_dict"].values())
    assert largest_difference(weights(grpo), {n.removeprefix("model."): t for n, t in saved["state_dict"].items()}) == 0


# -- the guard ---------------------------------------------------------------------------------------------------------


class Faulty(HFEngine):
    """Samples from the policy as it was when the engine started: what a sync that does not arrive looks like."""

    def start(self, model, tokenizer, max_model_len):
        import copy

        super().start(copy.deepcopy(model), tokenizer, max_model_len)


class WrongTemperature(HFEngine):
    """Reports log-probabilities at temperature 1, whatever it sampled at: vLLM's default `raw_logprobs`."""

    def stream(self, prompt_ids, sampling):
        from dataclasses import replace

        for rollouts in super().stream(prompt_ids, sampling):
            with torch.no_grad():
                device = self._model.device
                raw, _ = score(self._model, rollouts.tokens.to(device), rollouts.mask.to(device), 1.0)
            yield replace(rollouts, logprobs=raw.cpu())


class HalfPrecision(Faulty):
    """Samples with bfloat16 weights while the policy computes in float32."""

    def start(self, model, tokenizer, max_model_len):
        super().start(model, tokenizer, max_model_len)
        self._model.to(torch.bfloat16)

    def load_weights(self, named_tensors, version):
        self._model.load_state_dict(dict(named_tensors))
        super().load_weights([], version)


@pytest.mark.parametrize(
    "engine", [Faulty(fused=False), WrongTemperature(), HalfPrecision(fused=False)], ids=lambda e: type(e).__name__
)
def test_the_guard_stops_a_sampler_that_is_not_the_policy(tiny, tmp_path, engine):
    changes = {"engine": engine, "sampling": Sampling(group_size=8, max_tokens=6, temperature=0.7)}
    causes = ["tied output head", "prefix cache", "temperature", "dtype", "quantised", "rotary", "own code", "random"]
    with pytest.raises(RunStopped, match="differ by .* " + ".* ".join(causes)):
        fit(module(tiny, **changes), data(), trainer(tmp_path, 3))
    fit(module(tiny, **changes, guard=None), data(), trainer(tmp_path, 3))  # and it is the guard that did it


def test_the_guard_is_quiet_where_all_is_well(tiny, tmp_path):
    record, cooler = Record(), Sampling(group_size=8, max_tokens=6, temperature=0.7)
    grpo = fit(module(tiny, sampling=cooler), data(), trainer(tmp_path, 3, (record,)))
    assert largest_difference(weights(grpo), weights_of(tiny)) > 1e-3  # else any sampler would agree
    assert [row["sampler/mismatch_mean"] < 1e-5 for row in record.rows] == [True] * 3


def test_guard_threshold_by_dtype():
    policy, mask = torch.zeros(1, 4), torch.tensor([[False, True, True, True]])
    sampler = torch.tensor([[9.0, 0.03, -0.03, 0.03]])
    with pytest.raises(RunStopped, match=r"0\.03 nats"):
        MismatchGuard().check(policy, sampler, mask, torch.float32)
    assert MismatchGuard().check(policy, sampler, mask, torch.bfloat16)["sampler/mismatch_mean"] == pytest.approx(0.03)
    with pytest.raises(RunStopped):
        MismatchGuard().check(policy, sampler * float("nan"), mask, torch.bfloat16)


# -- before the first step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": Sampling(group_size=1)}, "group_size is 1"),
        ({"sampling": Sampling(temperature=0)}, "temperature is 0"),
        ({"sampling": Sampling(max_tokens=4000)}, "beyond the policy's context of 2048"),
        ({"micro_tokens": 20}, "micro_tokens is 20, but one row may have 38 tokens"),
        ({"updates_per_batch": 0}, "updates_per_batch is 0"),
        ({"sampling": Sampling(top_p=0.9, max_tokens=6)}, "top_p 0.9"),
        (
            {
                "sampling": Sampling(top_k=5, max_tokens=6),
                "guard": None,
                "objective": GRPO(correction=SamplerCorrection()),
            },
            "top_k 5",
        ),
        ({"rewards": []}, "rewards"),
        ({"rewards": [ParityReward(), ParityReward()]}, "share a name"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, tmp_path, changes, message):
    settings = {"sampling": Sampling(group_size=8, max_tokens=6), **changes}
    with pytest.raises(InputError, match=message):
        fit(module(tiny, **settings), data(), trainer(tmp_path, 1))


def test_truncated_sampling_is_allowed_where_nothing_compares_with_the_sampler(tiny, tmp_path):
    grpo = fit(module(tiny, sampling=Sampling(top_p=0.9, max_tokens=6), guard=None), data(), trainer(tmp_path, 1))
    assert grpo.global_step == 1


class AllFailing(Reward):
    """A grader that never answers."""

    def __call__(self, prompts, rollouts):
        return torch.full((len(prompts), rollouts.group_size), float("nan"))


def test_a_step_whose_graders_all_fail_moves_nothing_and_is_the_last(tiny, tmp_path):
    grpo = module(tiny, rewards=[AllFailing()], micro_tokens=200)
    with pytest.raises(RunStopped, match="no completion of the step could be graded: the reward 'all_failing'"):
        fit(grpo, data(), trainer(tmp_path, 2))
    assert largest_difference(weights(grpo), weights_of(tiny)) == 0


def test_the_arithmetic_is_said_before_the_first_step(tiny, tmp_path, caplog):
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(module(tiny), data(), trainer(tmp_path, 2))
    said = caplog.text
    assert "4 prompts x 8 completions = 32 rows a batch, 32 on each of 1 rank(s)" in said
    assert "2 batches x 1 update(s) = 2 optimiser steps" in said
    assert "at most 384 sampled tokens (192 a batch)" in said


@pytest.mark.parametrize(
    ("steps", "epochs", "updates", "batches"), [(2, -1, 1, 2), (9, -1, 1, 9), (-1, 2, 1, 12), (7, 1, 2, 4)]
)
def test_the_arithmetic_knows_epochs_and_steps(tiny, tmp_path, steps, epochs, updates, batches):
    """The plan has six batches an epoch; whatever ends the run first counts."""
    grpo = module(tiny, updates_per_batch=updates)
    grpo.trainer = trainer(tmp_path, steps, max_epochs=epochs)
    datamodule = data()
    datamodule.tokenizer = grpo.tokenizer
    datamodule.setup("fit")
    grpo.trainer.datamodule = datamodule
    assert grpo.planned_batches() == batches


# -- adapters, dtype, checkpointing ------------------------------------------------------------------------------------


def test_lora_trains_adapters_only_and_hands_the_engine_merged_weights(tiny, tmp_path):
    policy = Policy(tiny, lora=LoRA(rank=4))
    grpo = fit(module(tiny, policy=policy, objective=GRPO(kl=KLPenalty(0.1))), data(), trainer(tmp_path, 3))
    trained = {n for n, p in grpo.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    plain = Policy(tiny).load_model()
    frozen = {
        n.replace(".base_layer", ""): t for n, t in base_model(grpo.model).state_dict().items() if "lora_" not in n
    }
    assert largest_difference(frozen, plain.state_dict()) == 0
    merged = dict(named_weights(grpo.model))
    assert merged.keys() == plain.state_dict().keys()
    tokens = torch.randint(0, 200, (2, 9))
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(tokens).logits, grpo.model.eval()(tokens).logits, atol=1e-5, rtol=0)


def test_gradient_checkpointing_changes_memory_not_the_step(tiny, tmp_path):
    checkpointed = one_step(tiny, tmp_path, policy=Policy(tiny, gradient_checkpointing=True))
    assert largest_difference(checkpointed, one_step(tiny, tmp_path)) < 1e-6


@pytest.mark.parametrize(
    ("policy", "precision"),
    [({}, "bf16-mixed"), ({"dtype": "bfloat16", "lora": LoRA()}, "32-true"), ({"lora": LoRA()}, "bf16-mixed")],
)
def test_bfloat16_arithmetic_trains_under_the_guard(tiny, tmp_path, policy, precision):
    record = Record()
    fit(module(tiny, policy=Policy(tiny, **policy)), data(), trainer(tmp_path, 2, (record,), precision=precision))
    assert 0 <= record.rows[-1]["sampler/mismatch_mean"] < 0.1


def test_schedule_and_warm_up_set_the_rate(tiny, tmp_path):
    record = Record()
    halving = lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=1, gamma=0.5)  # noqa: E731
    fit(module(tiny, lr_scheduler=halving, warmup_steps=2), data(), trainer(tmp_path, 4, (record,)))
    assert [row["optim/lr"] for row in record.rows] == pytest.approx([0.25, 0.25, 0.125, 0.0625])


def test_a_checkpoint_of_another_model_is_refused(tiny, tmp_path, tmp_path_factory):
    from saerl_lightning.assets.tiny import build_tiny_policy

    keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    fit(module(tiny), data(), trainer(tmp_path, 1, (keep,), enable_checkpointing=True))
    other = str(build_tiny_policy(str(tmp_path / "other"), ["abc"], hidden_size=32, layers=1, vocab_size=270))
    with pytest.raises(InputError, match=r"another model.*tiny.*other"):
        fit(module(other), data(), trainer(tmp_path, 2), ckpt_path=str(tmp_path / "last.ckpt"))


@pytest.mark.parametrize("stop_at", [1, 3, 7])  # the epoch has six batches: before, in the middle, in the next one
def test_resume_is_exact(tiny, tmp_path, stop_at):
    """Stopped after any step and resumed, the run ends on the very same weights."""
    adam = lambda params: torch.optim.AdamW(params, lr=1e-2)  # noqa: E731
    whole = weights(fit(module(tiny, optimizer=adam), data(), trainer(tmp_path, 9)))
    keep = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    fit(module(tiny, optimizer=adam), data(), trainer(tmp_path, stop_at, (keep,), enable_checkpointing=True))
    again = trainer(
        tmp_path, 9, (ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=0),), enable_checkpointing=True
    )
    resumed = fit(module(tiny, optimizer=adam), data(), again, ckpt_path=str(tmp_path / "last.ckpt"))
    assert largest_difference(weights(resumed), whole) == 0


def test_the_tests_own_sums_have_right_answers():
    assert [p.answer for p in Sums(12).load()][9:] == ["9", "1", "2"]
    assert sgd([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.5


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated", "ignore:.*does not have many workers")
def test_predict_returns_a_row_for_each_completion(tiny, tmp_path):
    sums = Sums()
    asked = data(val={"held": sums}, val_sampling=Sampling(group_size=2, max_tokens=5, seed=1), val_batch_size=3)
    batches = trainer(tmp_path, 0).predict(module(tiny), asked)
    rows = [row for batch in batches for row in batch]
    prompts = [prompt for prompt in sums.load() for _ in range(2)]
    assert [(each["uid"], each["prompt"], each["answer"]) for each in rows] == [
        (p.uid, p.text, p.answer) for p in prompts
    ]
    assert {each["set"] for each in rows} == {"held"} and len({each["completion"] for each in rows}) > len(rows) / 4
    assert all(isinstance(each["truncated"], bool) for each in rows)
