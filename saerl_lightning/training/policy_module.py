"""PolicyModule: loading, optimiser and schedule, sampling, evaluation and checkpoints of all modules that train a policy."""

from __future__ import annotations

import math
from abc import ABC
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import lightning
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn

from saerl_lightning.errors import InputError, RunStopped
from saerl_lightning.plan import require_even_shares
from saerl_lightning.policy.load import Policy
from saerl_lightning.policy.shard_loading import load_over
from saerl_lightning.policy.weights import base_model, fingerprint, is_sharded, named_weights, save_adapters
from saerl_lightning.ranks.collectives import agreed, gather_objects, mean_over_ranks
from saerl_lightning.ranks.sharded import ShardedStrategy, require_strategy
from saerl_lightning.records import PromptBatch, Rollouts, Sampling
from saerl_lightning.reward.reward import Reward
from saerl_lightning.rollout.engine import RolloutEngine
from saerl_lightning.training.callbacks import CleanEnd
from saerl_lightning.training.evaluation import SetGrades
from saerl_lightning.training.loggers import LoggedNames, is_shipped, require_monitored
from saerl_lightning.training.metrics import Phases
from saerl_lightning.training.optimization import Gradients, not_finite, require_same_optimiser, require_steps, warm_up
from saerl_lightning.training.precision import require_trainable
from saerl_lightning.whole_weights import require_finite_weights

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from saerl_lightning.data.module import PromptDataModule


class PolicyModule(lightning.LightningModule, ABC):
    """A policy under Lightning. Subclasses store the fields below in their constructor and define training.

    Evaluation samples each named set with its own settings and grades by the first reward. It logs
    `<stage>/<set>/<metric>`, and a macro average over the sets.
    """

    policy: Policy
    engine: RolloutEngine
    rewards: list[Reward]
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None
    phases: Phases
    warmup_steps: int
    max_grad_norm: float | None
    model: PreTrainedModel
    gradients: Gradients
    _step_names: Sequence[str]  # that a training step may log

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer, loaded once."""
        return self.policy.load_tokenizer()

    @property
    def prompts(self) -> PromptDataModule:
        """The datamodule that serves this run.

        Raises:
            InputError: if the trainer got none.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise InputError(
                f"{type(self).__name__} reads prompts from a datamodule, and the trainer got none; write "
                "trainer.fit(module, data), with data=PromptDataModule(...)"
            )
        return cast("PromptDataModule", datamodule)

    @property
    def context(self) -> int | None:
        """Longest sequence that the policy supports, in tokens; None if its config does not say."""
        return getattr(base_model(self.model).config, "max_position_embeddings", None)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the forward pass: autocast's if it is on, else that of the weights."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return next(self.model.parameters()).dtype

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Checks settings in the first hook of a run, before data or weights are loaded; adds the run's clean end."""
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        self.require_processes(self.trainer, self.prompts if fitting else None)
        if self.trainer.state.fn != TrainerFn.PREDICTING:
            for reward in self.rewards:
                reward.check()
        if fitting:
            require_trainable(self.policy, self.trainer.precision)
            require_steps(self.optimizer, self.lr_scheduler, self.trainer.strategy.root_device)
            if (names := self.logged_names()) is not None:
                require_monitored(self.trainer, names)
        return [CleanEnd(self.close)]

    def require_processes(self, trainer: lightning.Trainer, prompts: object) -> None:
        """Refuses an engine that can't sample under these processes, and batches they can't share.

        Args:
            trainer: Trainer with its processes.
            prompts: Datamodule of the run, if it trains.

        Raises:
            InputError: saying what to write instead.
        """
        require_strategy(trainer, self.engine.samples_by_policy)
        self.engine.require_processes(trainer.world_size)
        self.engine.check()
        require_even_shares(getattr(prompts, "batch_size", trainer.world_size), trainer.world_size)

    def logged_names(self) -> LoggedNames | None:
        """Names that the run will log; None if a user's own class may log others."""
        sets: dict[str, int] | None = getattr(self.prompts, "samples_a_question", None)
        if sets is None or not (is_shipped(self) and is_shipped(getattr(self, "objective", self))):
            return None
        return LoggedNames.of_policy(self._step_names, sets, [reward.name for reward in self.rewards])

    def setup(self, stage: str) -> None:
        """Refuses prompts that their rewards can't grade, before weights are loaded; the first reward grades evaluation.

        Args:
            stage: Stage of the run, as Lightning names it.

        Raises:
            InputError: naming what the prompts lack.
        """
        with agreed():
            for prompts in self.prompts.evaluated(stage):
                self.rewards[0].require(prompts)

    def configure_model(self) -> None:
        """Loads the policy's weights, once."""
        if not hasattr(self, "model"):
            self.model = self.load_policy()
            self.model.train()

    def load_policy(self) -> PreTrainedModel:
        """Loads the policy, sharded over the processes under a strategy that does so."""
        strategy = None if self._trainer is None else self.trainer.strategy
        if not isinstance(strategy, ShardedStrategy):
            with agreed():  # the folder may be missing on one machine
                return self.policy.load_model()
        compute = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
        return load_over(self.policy, strategy.device_mesh["data_parallel"], strategy.root_device, compute)

    def configure_optimizers(self) -> Any:
        """Builds the optimiser over the trained weights, and its schedule if there is one."""
        optimizer = self.optimizer(p for p in self.model.parameters() if p.requires_grad)
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    def on_train_start(self) -> None:
        """Runs the validation that was still due when a resumed run's checkpoint was saved."""
        self.prompts.resume.validate_if_due(self.trainer)

    def teardown(self, stage: str) -> None:
        """Closes the engine and the graders."""
        self.close()

    def close(self) -> None:
        """Closes the engine and the graders, and forgets a step that was given up; another run starts them again."""
        self.engine.close()
        for reward in self.rewards:
            reward.close()
        self._started, self._engine_holds = False, None
        self.phases.drain()
        self.zero_grad()

    # -- sampling ------------------------------------------------------------------------------------------------------

    weight_version = 0  # increased whenever the engine gets new weights
    _started = False  # whether the engine is started
    _engine_holds: list[float] | None = None  # fingerprint of the engine's weights; None while it sleeps

    def sync(self) -> None:
        """Loads the present weights into the engine, starting it if needed; does nothing if it has them.

        Whether the engine has them is found by a fingerprint of the weights, because a callback such as weight
        averaging may have replaced them for validation.
        """
        if not self._started:
            longest = max(each.max_tokens for each in self.samplings())
            self.start_engine(self.prompts.chat.max_prompt_tokens, longest)
        present = fingerprint(self.model)
        # Sharded weights are gathered from all processes, and each sees whether its own part has changed.
        ranks = self.trainer.world_size if is_sharded(self.model) else 1
        if all(gather_objects(self._engine_holds == present, ranks)):
            return
        self.weight_version += 1
        self.engine.wake()
        with agreed():
            self._send()
        self._engine_holds = present

    def _send(self) -> None:
        """Sends the adapters, or all weights, to the engine."""
        if self.engine.takes_adapters:
            with TemporaryDirectory(prefix="adapters-") as folder:
                save_adapters(self.model, Path(folder))
                self.engine.load_adapters(Path(folder), self.weight_version)
        else:
            with self.trainer.precision_plugin.forward_context():
                weights = named_weights(self.model)
                try:
                    self.engine.load_weights(weights, self.weight_version)
                finally:
                    deque(weights, maxlen=0)  # sharded ones are gathered by all processes, also if one fails here

    def rest(self) -> None:
        """Frees the engine's memory for the update; the next `sync` loads its weights again."""
        self.engine.sleep()
        self._engine_holds = None

    def start_engine(self, prompt: int, completion: int) -> None:
        """Starts the engine for rows of the given length; the next `sync` loads the weights.

        Args:
            prompt: Largest number of tokens of a prompt.
            completion: Largest number of tokens of a completion.

        Raises:
            InputError: if the policy's context does not hold both.
        """
        if self.context is not None and prompt + completion > self.context:
            raise InputError(
                f"chat.max_prompt_tokens {prompt} + the longest sampling's max_tokens {completion} = {prompt + completion} "
                f"tokens is beyond the policy's context of {self.context}; lower one of them"
            )
        # Under the trainer's autocast, so that the engine can find the policy's compute dtype.
        with self.trainer.precision_plugin.forward_context():
            self.engine.start(base_model(self.model), self.tokenizer, prompt + completion)
        self._started = True

    def samplings(self) -> list[Sampling]:
        """All sampling settings of this run; the engine is started for the longest."""
        return self.prompts.samplings

    _complaint: Callable[[float], str]  # describes a gradient norm that is NaN or infinite

    # -- descending ----------------------------------------------------------------------------------------------------

    def descend(self, loss: float, batch: PromptBatch) -> dict[str, float]:
        """Clips the gradients, takes one optimiser step and clears them. All ranks call it.

        Args:
            loss: Loss of this rank; the mean over ranks is checked.
            batch: Prompts of this rank.

        Returns:
            The gradient norm before clipping, and the learning rate of the step.

        Raises:
            RunStopped: on every rank, if loss or norm is NaN or infinite; the step is not taken.
        """
        optimizer = cast("LightningOptimizer", self.optimizers())
        loss = float(mean_over_ranks(self.trainer, torch.tensor(loss, device=self.device)))
        self._complaint = lambda norm: not_finite(loss, norm, self._uids_of_all_ranks(batch))
        if not math.isfinite(loss):
            raise RunStopped(self._complaint(math.nan), everywhere=True)
        with self.phases("optimizer"), warm_up(optimizer.optimizer, self.global_step, self.warmup_steps):
            rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
        optimizer.zero_grad()
        schedule = cast("LRScheduler | None", self.lr_schedulers())
        if schedule is not None and not self.gradients.overflowed:
            schedule.step()
        return {"optim/grad_norm": self.gradients.norm, "optim/lr": rate}

    def _uids_of_all_ranks(self, batch: PromptBatch) -> list[str]:
        uids = [prompt.uid for prompt in batch.prompts]
        return [uid for part in gather_objects(uids, self.trainer.world_size) for uid in part]

    def skipped_steps(self) -> dict[str, float]:
        """Number of steps skipped so far because a scaled gradient overflowed; empty if no loss is scaled."""
        scales = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        return {"optim/skipped_steps": float(self.gradients.skipped)} if scales else {}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Unscales, clips and checks the gradients; Lightning calls it inside the step."""
        self.gradients.prepare(self.trainer, optimizer, self.max_grad_norm, self._complaint)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Syncs the engine and makes one accuracy a named set."""
        self._begin_evaluation({n: self.prompts.val_set(i) for i, n in enumerate(self.prompts.val_names)})

    def on_test_start(self) -> None:
        """Syncs the engine and makes one accuracy a named set."""
        self._begin_evaluation({n: self.prompts.test_set(i) for i, n in enumerate(self.prompts.test_names)})

    def on_predict_start(self) -> None:
        """Syncs the engine."""
        self.sync()

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Samples and grades one batch of a named set."""
        self._evaluate(batch, self.prompts.val_set(dataloader_idx), dataloader_idx)

    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Samples and grades one batch of a named set."""
        self._evaluate(batch, self.prompts.test_set(dataloader_idx), dataloader_idx)

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Samples completions of one batch, and returns a row for each: uid, set, prompt, answer, completion, truncated."""
        if not is_sharded(self.model):
            self.sync()
        rollouts = self._sample(batch, self.prompts.test_set(dataloader_idx))
        name = self.prompts.test_names[dataloader_idx]
        asked = [prompt for prompt in batch.prompts for _ in range(rollouts.group_size)]
        return [
            {"uid": p.uid, "set": name, "prompt": p.text, "answer": p.answer, "completion": text, "truncated": cut}
            for p, text, cut in zip(asked, rollouts.texts, rollouts.truncated.tolist(), strict=True)
        ]

    def on_validation_epoch_end(self) -> None:
        """Logs every set's accuracy and the macro average."""
        self._report_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs every set's accuracy and the macro average."""
        self._report_evaluation("test")

    def _begin_evaluation(self, sets: dict[str, Sampling]) -> None:
        self.sync()
        samples = {name: sampling.group_size for name, sampling in sets.items()}
        self.evaluation = SetGrades(samples, self.prompts.topics, self.rewards[0], self.device)

    def _sample(self, batch: PromptBatch, sampling: Sampling) -> Rollouts:
        with self.phases("sample"):
            return self.engine.generate(batch.ids, sampling.placed(batch.places, sampling.seed))

    def _evaluate(self, batch: PromptBatch, sampling: Sampling, index: int) -> None:
        # Callbacks may replace the weights after `on_validation_start`; shards are synced by all processes at once.
        if not is_sharded(self.model):
            self.sync()
        if self.evaluation.failure is not None:
            return
        try:
            rollouts = self._sample(batch, sampling)
            with self.phases("grade"):
                self.evaluation.grade(batch, rollouts, index)
        except Exception as error:
            if self.trainer.world_size == 1:
                raise
            self.evaluation.failure = error

    def _report_evaluation(self, stage: str) -> None:
        metrics = self.evaluation.metrics(stage)
        self.phases.drain()  # seconds of evaluation must not count for the next step, nor counts
        self.rewards[0].drain_counts()
        self.rewards[0].drain_parts()
        self.log_dict(metrics, sync_dist=True)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the policy's path, dtype and LoRA settings to the checkpoint."""
        checkpoint["policy"] = asdict(self.policy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another model or optimiser before any weight is loaded.

        Raises:
            InputError: naming both models and the first weight that differs, weights that are NaN or infinite, or the
                states of the two optimisers.
        """
        if "state_dict" not in checkpoint:  # sharded: the strategy has compared and loaded the weights
            return
        saved = {n.removeprefix("model."): tuple(t.shape) for n, t in checkpoint["state_dict"].items()}
        own = {n: tuple(t.shape) for n, t in self.model.state_dict().items()}
        differing = sorted(n for n in saved.keys() | own.keys() if saved.get(n) != own.get(n))
        if differing:
            name = differing[0]
            raise InputError(
                f"the checkpoint is of another model: it was trained from '{checkpoint.get('policy', {}).get('path')}', "
                f"policy.path is '{self.policy.path}', and {name} is {saved.get(name, 'missing')} there and "
                f"{own.get(name, 'missing')} here; give the policy (and lora) it was trained with"
            )
        require_finite_weights(checkpoint["state_dict"], "the checkpoint")
        if self.trainer.state.fn == TrainerFn.FITTING:
            trained = [each for each in self.model.parameters() if each.requires_grad]
            require_same_optimiser(checkpoint, self.optimizer, self.lr_scheduler is not None, trained)
