"""One step ahead: the steps of a plain loop over stale weights; no sync while a batch is sampled; clean ends."""

from __future__ import annotations

import threading
import time

import lightning
import pytest
import torch

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.objective.grpo import GRPO
from saerl_lightning.objective.reweighting.ar import AR
from saerl_lightning.policy.load import Policy
from saerl_lightning.records import Sampling
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.rollout.server import ServerEngine
from saerl_lightning.training.rounds.dynamic_sampling import DynamicSampling
from tests.training.conftest import ParityReward, data, fit, largest_difference, module, sgd, trainer, weights
from tests.training.stale import CopyEngine, ahead, run

SEED, STEPS = 3, 4


def replay(tiny: str, batches: list, steps: int, alpha: float = 0.0) -> dict[str, torch.Tensor]:
    """Trains batch k by weights k, on completions that weights k - 1 sampled: a plain loop in one thread.

    Written without the trainer, its loss and its scorer: GRPO's surrogate at ratio 1 with truncated weights
    pi_old / pi_sampler (cap 2), advantages (r - mean) / (std + 1e-4), gradient clipped to norm 1, SGD of rate 0.5. With
    alpha, tokens are weighed by alpha pi_old + 1 - alpha over its mean.
    """
    policy = Policy(tiny)
    model, tokenizer = policy.load_model(), policy.load_tokenizer()
    history = [{name: value.clone() for name, value in model.state_dict().items()}]
    for k in range(steps):
        sampler = policy.load_model()
        sampler.load_state_dict(history[max(0, k - 1)])
        with HFEngine(fused=False) as engine:
            engine.start(sampler, tokenizer, 40)
            engine.load_weights(sampler.state_dict().items(), 1)
            rollouts = engine.generate(batches[k].ids, Sampling(8, max_tokens=6).placed(range(4), SEED + 7919 * k))
        rewards = ParityReward()(batches[k].prompts, rollouts)
        worth = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        model.train()
        every = model(rollouts.tokens).logits[:, :-1].log_softmax(-1)
        logprobs = every.gather(2, rollouts.tokens[:, 1:, None])[..., 0]
        mask, old = rollouts.mask[:, 1:], logprobs.detach()
        weight = torch.where(mask, (old - rollouts.logprobs[:, 1:]).exp().clamp(max=2.0), 0.0)
        gain = torch.where(mask, (logprobs - old).exp() * worth.flatten()[:, None] * weight, 0.0)
        raw = torch.where(mask, alpha * old.exp() + 1 - alpha, 0.0)
        gain = gain * raw / (raw.sum() / mask.sum())
        loss = -(gain.sum(1) / mask.sum(1)).mean()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        sgd(model.parameters()).step()
        history.append({name: value.clone() for name, value in model.state_dict().items()})
    return history[-1]


def test_its_steps_are_those_of_a_plain_loop_over_stale_weights(tiny, tmp_path):
    made, record = run(tiny, tmp_path, STEPS)
    batches = [made.prompts.pool.batch(rows) for rows in record.served]
    assert [row["rollouts/staleness"] for row in record.rows] == [0, 1, 1, 1]
    assert [row["rollouts/staleness/max"] for row in record.rows] == [0, 1, 1, 1]
    assert largest_difference(weights(made), replay(tiny, batches, STEPS)) < 2e-7
    alternating = weights(fit(ahead(tiny, lookahead=False), data(), trainer(tmp_path / "other", STEPS)))
    assert largest_difference(weights(made), alternating) > 1e-4


def test_tokens_are_weighed_by_the_policys_probabilities_not_those_of_the_stale_sampler(tiny, tmp_path):
    made, record = run(tiny, tmp_path, STEPS, reweighting=AR(0.9))
    batches = [made.prompts.pool.batch(rows) for rows in record.served]
    assert largest_difference(weights(made), replay(tiny, batches, STEPS, 0.9)) < 2e-7
    assert largest_difference(weights(made), replay(tiny, batches, STEPS)) > 1e-4


def test_weights_are_never_sent_while_a_batch_is_sampled_and_each_batch_has_those_before_its_last_update(
    tiny, tmp_path
):
    made, record = run(tiny, tmp_path, 3)
    # Version k + 1 holds the weights before step k; the engine itself refuses weights while it samples.
    begun = [("load", 1), ("sample", 1), ("sample", 1), ("load", 2), ("sample", 2), ("load", 3), ("sample", 3)]
    assert made.engine.done == [*begun, ("load", 4)]
    assert all("time/wait" in row or row["time/generate"] > 0 for row in record.rows)
    assert all(row["sampler/mismatch_mean"] < 1e-5 and row["time/guard"] > 0 for row in record.rows)


def test_an_epochs_first_batch_is_sampled_by_the_present_weights(tiny, tmp_path):
    """Six batches an epoch; a limit of four ends it earlier, and nothing is sampled that is not trained on."""
    _, record = run(tiny, tmp_path, 8)
    assert [row["rollouts/staleness"] for row in record.rows] == [0, 1, 1, 1, 1, 1, 0, 1]
    made, record = run(tiny, tmp_path, 8, limits={"limit_train_batches": 4})
    assert [row["rollouts/staleness"] for row in record.rows] == [0, 1, 1, 1] * 2
    assert sum(what == "sample" for what, _ in made.engine.done) == 8


def test_it_samples_while_it_trains(tiny, tmp_path):
    """The second batch is sampled only once the gradient of the first is there: an alternating run would wait for ever."""
    trained = threading.Event()

    class Waiting(CopyEngine):
        def generate(self, prompt_ids, sampling):
            if ("sample", 1) in self.done and len(prompt_ids) > 1:
                assert trained.wait(60)
            return super().generate(prompt_ids, sampling)

    class Told(lightning.Callback):
        def on_before_optimizer_step(self, *_):
            trained.set()

    run(tiny, tmp_path, 2, Told(), engine=Waiting())
    assert trained.is_set()


def test_the_canary_is_sampled_while_it_trains(tiny, tmp_path):
    """It is sampled only once the gradient of its own step is there, and compared before the weights change."""
    trained, order = threading.Event(), []

    class Waiting(CopyEngine):
        def generate(self, prompt_ids, sampling):
            if len(prompt_ids) == 1:
                assert trained.wait(60)
                order.append("canary")
            return super().generate(prompt_ids, sampling)

    class Told(lightning.Callback):
        def on_after_backward(self, *_):
            trained.set()

        def on_before_optimizer_step(self, *_):
            order.append("update")

    run(tiny, tmp_path, 1, Told(), engine=Waiting())
    assert order == ["canary", "update"]


def test_a_sync_in_the_middle_of_a_step_waits_for_the_batch(tiny, tmp_path):
    """A callback changes weights and syncs while the next batch is sampled; the engine refuses weights meanwhile."""
    busy, begun = [], threading.Event()

    def hold():
        assert begun.wait(60)
        time.sleep(0.5)

    class Synced(lightning.Callback):
        def on_before_optimizer_step(self, trainer, module, _):
            busy.append(module.ahead.busy)
            begun.set()
            with torch.no_grad():
                next(module.parameters()).mul_(1.5)
            module.sync()
            busy.append(module.ahead.busy)

    run(tiny, tmp_path, 2, Synced(), engine=CopyEngine(hold))
    assert busy[:2] == [True, False]


def test_a_sampler_that_keeps_old_weights_is_noticed(tiny, tmp_path):
    class Deaf(CopyEngine):
        def load_weights(self, named_tensors, version):
            super().load_weights(self.copy.state_dict().items() if version > 1 else named_tensors, version)

    with pytest.raises(RunStopped, match="the sampler is not the policy"):
        run(tiny, tmp_path, 3, engine=Deaf())


# -- ends --------------------------------------------------------------------------------------------------------------


class Failing(CopyEngine):
    """Fails at the third batch."""

    def generate(self, prompt_ids, sampling):
        if sum(what == "sample" for what, _ in self.done) == 2 and len(prompt_ids) > 1:
            raise RunStopped("no vLLM server is left: s1 is dead")
        return super().generate(prompt_ids, sampling)


class FailingGrader(ParityReward):
    """Fails at the third batch."""

    calls = 0

    def __call__(self, prompts, rollouts):
        self.calls += 1
        if self.calls == 3:
            raise ZeroDivisionError("a grader's own fault")
        return super().__call__(prompts, rollouts)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"engine": Failing()}, RunStopped, "s1 is dead"),
        ({"rewards": [FailingGrader()]}, ZeroDivisionError, "own fault"),
    ],
)
def test_what_fails_in_the_thread_ends_the_run_by_its_own_error_in_its_batchs_step(
    tiny, tmp_path, changes, error, said
):
    made = ahead(tiny, **changes)
    run_of_five = trainer(tmp_path, 5)
    with pytest.raises(error, match=said):
        fit(made, data(), run_of_five)
    assert run_of_five.global_step == 2  # of the third batch no step is taken
    assert not any(thread.name == "ahead" for thread in threading.enumerate())


def test_a_step_that_fails_ends_the_thread_that_samples_for_the_next(tiny, tmp_path):
    class Hanging(CopyEngine):
        """Its second batch takes until the engine is closed."""

        closed = threading.Event()

        def generate(self, prompt_ids, sampling):
            if len(prompt_ids) > 1 and ("sample", 1) in self.done:
                assert self.closed.wait(60)
                raise RuntimeError("closed")
            return super().generate(prompt_ids, sampling)

        def close(self):
            self.closed.set()
            super().close()

    class Broken(lightning.Callback):
        def on_before_optimizer_step(self, *_):
            raise KeyError("a user's own callback")

    began = time.monotonic()
    with pytest.raises(KeyError, match="a user's own callback"):
        run(tiny, tmp_path, 3, Broken(), engine=Hanging())
    assert time.monotonic() - began < 30
    assert not any(thread.name == "ahead" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": HFEngine()}, r"HFEngine can't sample while .* write -c configs/engine/lookahead\.yaml"),
        ({"objective": GRPO()}, r"objective\.correction is null; .* --model\.objective\.correction SamplerCorrection"),
        ({"dynamic_sampling": DynamicSampling()}, r"write --model\.dynamic_sampling null"),
    ],
)
def test_what_can_not_look_ahead_is_refused_before_anything_loads(changes, said):
    with pytest.raises(InputError, match=said):
        ahead("no/such/folder", **changes)
    module("no/such/folder", **changes)  # without it, all of them are fine


def test_servers_sample_while_the_policy_is_trained():
    assert ServerEngine().concurrent
    assert not HFEngine().concurrent
