"""SAEModule: trains a sparse autoencoder of sae-lens on activations from `ActivationDataModule`.

sae-lens provides the architectures, their losses and the file format; Lightning provides the loop. This module adds the
learning-rate schedule, the count of dead features, the scaling of activations, and the metrics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from saerl_lightning.errors import InputError
from saerl_lightning.ranges import Count, CountFrom0, Positive, Seed, Share, require_in_range
from saerl_lightning.sae.activations import ActivationDataModule
from saerl_lightning.sae.architecture import (
    active_on_average,
    build,
    coefficients,
    describe,
    inference,
    require_replaceable,
    require_same_shapes,
    save,
    threshold_for,
)
from saerl_lightning.sae.batch_top_k import choose_over_ranks
from saerl_lightning.sae.harvest import TokenRows
from saerl_lightning.sae.metrics import FeatureActivity, HeldOutText, Reconstruction, firing_counts
from saerl_lightning.training.callbacks import CleanEnd
from saerl_lightning.training.loggers import SAE as SAE_NAMES
from saerl_lightning.training.loggers import LoggedNames, is_shipped, require_monitored
from saerl_lightning.training.optimization import Gradients, require_makers, require_same_optimiser, require_steps
from saerl_lightning.training.precision import require_float32_weights
from saerl_lightning.whole_weights import require_finite_weights

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE, TrainStepOutput


def adam(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Builds Adam with a learning rate of 1e-3."""
    return torch.optim.Adam(params, lr=1e-3, fused=True)


def rate_factor(step: int, steps: float, warmup_steps: int, decay: float) -> float:
    """Computes the factor of the learning rate: up to 1 during warm-up, down to 0 at the end of the run.

    Args:
        step: Number of optimiser steps taken so far.
        steps: Number of steps of the whole run.
        warmup_steps: Number of warm-up steps. The first step has 1 / warmup_steps of the full rate; 0 means no warm-up.
        decay: Share of the steps at the end during which the rate falls. It would reach 0 one step after the last.
    """
    rise = (step + 1) / max(1, warmup_steps)
    fall = (steps - step) / (decay * steps) if decay else 1.0
    return max(0.0, min(1.0, rise, fall))


MEASURED_ON = 16_384  # positions used to set a threshold if no text is held out


class SAEModule(lightning.LightningModule):
    """Trains a sparse autoencoder (SAE) to reconstruct activations from few active features.

    Activations are scaled to a mean norm of sqrt(d), and the decoder's bias starts at their mean. The scale is folded
    into the saved weights. BatchTopK applies k to the batch of all processes; its final threshold is set on held-out
    text.

    Args:
        architecture: Architecture of the SAE, by sae-lens's name: topk, batchtopk, jumprelu, standard, gated, ...
        expansion: Number of features per dimension of the activations (F / d).
        d_sae: Number of features (F), instead of `expansion`.
        options: Further settings of the architecture, such as {k: 32}. Others keep sae-lens's defaults.
        save_to: Folder of the finished SAE; null takes `sae` in the run's folder.
        replace: Whether to replace an SAE in the folder. A resumed run always does.
        optimizer: Optimiser of the trained weights.
        warmup_steps: Number of optimiser steps until the full learning rate.
        decay: Share of the run, at the end, during which the learning rate falls linearly to 0.
        max_grad_norm: Maximum norm of the gradients, which are scaled down to it; null does not clip.
        freeze_decoder: Whether to keep the decoder's random initial weights (control for learned directions, arXiv
            2602.14111).
        dead_after: Number of positions without firing, over all processes, after which a feature is dead. Some
            architectures revive dead features by an auxiliary loss.
        seed: Seed of the initial weights.

    Raises:
        InputError: if a number is out of range.
    """

    scale: Tensor

    def __init__(
        self,
        architecture: str = "topk",
        expansion: Count = 8,
        d_sae: Count | None = None,
        options: dict[str, bool | int | float | str | list[int] | None] | None = None,
        save_to: str | None = None,
        replace: bool = False,
        optimizer: OptimizerCallable = adam,
        warmup_steps: CountFrom0 = 100,
        decay: Share = 0.2,
        max_grad_norm: Positive | None = 1.0,
        freeze_decoder: bool = False,
        dead_after: Count = 1_000_000,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.expansion = expansion
        self.d_sae = d_sae
        self.options = options or {}
        self.save_to = save_to
        self.replace = replace
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.decay = decay
        self.max_grad_norm = max_grad_norm
        self.freeze_decoder = freeze_decoder
        self.dead_after = dead_after
        self.seed = seed
        self.gradients = Gradients()
        self._explained_variance = math.nan  # last measured value
        self._is_saved = False
        self.register_buffer("scale", torch.zeros(()))  # 0 means not yet measured
        require_makers(type(self).__name__, optimizer)
        require_in_range(self)

    @property
    def data(self) -> ActivationDataModule:
        """The datamodule of this run."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, ActivationDataModule):
            raise InputError(
                f"SAEModule reads activations, but data is {type(datamodule).__name__}; write data: ActivationDataModule"
            )
        return datamodule

    @property
    def folder(self) -> Path:
        """Folder of the finished SAE."""
        return Path(self.trainer.default_root_dir, "sae") if self.save_to is None else Path(self.save_to)

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Checks the settings before text or model are read, because this is a run's first hook; adds the run's clean end."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            require_float32_weights(self.trainer.precision)
            require_steps(self.optimizer, None, self.trainer.strategy.root_device)
            if is_shipped(self):
                require_monitored(self.trainer, LoggedNames(SAE_NAMES, ["loss/"]))
        return [CleanEnd()]

    def setup(self, stage: str) -> None:
        """Refuses an unsuitable folder for the SAE before training starts."""
        if stage == "fit":
            require_replaceable(self.folder, self.replace or self.trainer.ckpt_path is not None)

    def configure_model(self) -> None:
        """Builds the SAE, once."""
        if hasattr(self, "sae"):
            return
        _, _, width = self.data.model.config()
        features = self.expansion * width if self.d_sae is None else self.d_sae
        self.sae: TrainingSAE[Any] = build(self.architecture, width, features, self.options, self.seed)
        if active_on_average(self.sae) is not None:
            choose_over_ranks(self.sae, self.trainer.world_size)
        self.sae.W_dec.requires_grad_(not self.freeze_decoder)
        self.activity = FeatureActivity(features, self.dead_after)
        self.window = Reconstruction(width)  # sums since the last log line
        self.held_out = HeldOutText(width)

    def configure_optimizers(self) -> Any:
        """Builds the optimiser of the trained weights, and the schedule over the whole run."""
        steps = self.trainer.estimated_stepping_batches
        if self.decay and not math.isfinite(steps):
            raise InputError(
                "a rate that decays needs the run's end; write trainer.max_steps, trainer.max_epochs, or model.decay 0"
            )
        optimizer = self.optimizer(p for p in self.sae.parameters() if p.requires_grad)
        schedule = LambdaLR(optimizer, lambda step: rate_factor(step, steps, self.warmup_steps, self.decay))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Measures the activations, and runs the validation that was due when a resumed run's checkpoint was saved."""
        self._measure()
        self.data.resume.validate_if_due(self.trainer)

    @torch.no_grad()
    def _measure(self) -> None:
        """Measures the norm and the mean of the activations, unless a checkpoint contains them."""
        self._last = time.perf_counter(), int(self.activity.trained)
        if self.scale > 0:
            return
        block = self.data.first_block()
        norms = block.float().norm(dim=1, keepdim=True)
        sums = torch.cat([block, norms, torch.ones_like(norms)], 1).double().sum(0)  # (d + 2,)
        *mean, norm, count = self._sum_over_ranks(sums.to(self.device))
        self.scale.copy_(math.sqrt(len(mean)) * count / norm)
        self.sae.b_dec.copy_(torch.stack(mean) / count * self.scale)

    def training_step(self, batch: Float[Tensor, "n d"], batch_idx: int) -> Tensor:
        """Computes the architecture's own loss on one batch."""
        from sae_lens.saes.sae import TrainStepInput

        logs = (self.global_step + 1) % cast("Any", self.trainer).log_every_n_steps == 0
        x = batch.to(self.sae.b_dec.dtype) * self.scale
        dead = self.activity.dead()
        output = self.sae.training_forward_pass(
            TrainStepInput(x, coefficients(self.sae, self.global_step), dead, self.global_step, logs)
        )
        counts = firing_counts(output.feature_acts)
        self.window.update(x, output.sae_out, counts.sum())
        self.activity.update(self._sum_over_ranks(counts), len(x) * self.trainer.world_size)
        self.data.advance()
        if logs:
            self._report(output)
        return output.loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips the gradients, and stops the run if their norm is NaN or infinite.

        Raises:
            RunStopped: before the optimiser step, so that the last checkpoint is valid.
        """
        limit = self.max_grad_norm if gradient_clip_val is None else gradient_clip_val
        step = self.global_step
        self.gradients.prepare(
            self.trainer,
            optimizer,
            limit,
            lambda norm: (
                f"the gradient norm is {norm} at step {step}; stopped before the step, so the last checkpoint is good. Lower "
                "the learning rate, or look for activations that are no numbers"
            ),
        )
        self.log("optim/grad_norm", self.gradients.norm)

    def _report(self, output: TrainStepOutput) -> None:
        losses = {f"loss/{name.removesuffix('_loss')}": value.detach() for name, value in output.losses.items()}
        self.log_dict(losses, sync_dist=True)
        self.log("loss", output.loss.detach(), prog_bar=True, sync_dist=True)
        measured = {**self.window.compute(), **self.activity.metrics()}
        self.window.reset()
        self._explained_variance = float(measured["explained_variance"])
        shown = {"l0", "explained_variance", "dead_share"}
        for name, value in measured.items():
            self.log(f"sae/{name}", value, prog_bar=name in shown)
        (before, trained), self._last = self._last, (time.perf_counter(), int(self.activity.trained))
        self.log("throughput/tokens_per_s", (self._last[1] - trained) / (self._last[0] - before))
        self.log("optim/lr", cast("Any", self.optimizers()).param_groups[0]["lr"])

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return cast("Tensor", self.trainer.strategy.reduce(values, reduce_op="sum"))

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Loads the complete model for the validation."""
        model = self.data.model
        self.held_out.begin(model.load_whole(), model.config()[0], self._finished())

    def _finished(self) -> Any:
        """Returns the SAE as it would be saved now. BatchTopK kinds get a threshold with k active features on average.

        The threshold is set on held-out text, or on the first block if no text is held out, and averaged over
        processes.
        """
        sae: Any = inference(self.sae, float(self.scale) or 1.0)
        k = active_on_average(self.sae)
        if k is not None:
            held_out = self.data.held_out_block()
            known = self.data.first_block()[:MEASURED_ON] if held_out is None else held_out
            threshold = torch.tensor([threshold_for(sae, known, k), 1.0], device=self.device)
            total, processes = self._sum_over_ranks(threshold)
            sae.threshold.fill_(float(total / processes))
        return sae

    def validation_step(self, batch: TokenRows, batch_idx: int) -> None:
        """Measures the SAE on a batch of held-out text."""
        self.held_out.add(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Logs `val/l0`, `val/explained_variance`, the losses of the model, and the scores.

        A score is NaN, with a message, if the model's loss is no lower than with zeros or means instead of the layer.
        """
        measured = self.held_out.end()
        for score, loss, others in (("ce_score", "ce_zeroed", "zeros"), ("ce_score_mean", "ce_mean", "means")):
            if measured[score].isnan():
                rank_zero_info(
                    f"val/{score} is not defined here: the model's loss on this text, {measured['ce_clean']:.4g}, is not "
                    f"below {measured[loss]:.4g}, its loss with {others} in place of the layer"
                )
        self._explained_variance = float(measured["explained_variance"])
        shown = {"explained_variance", "ce_score"}
        for name, value in measured.items():
            self.log(f"val/{name}", value.float(), prog_bar=name in shown, sync_dist=True)  # equal on all ranks

    # -- checkpoints and the result ------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another SAE or optimiser before any weight is loaded.

        Raises:
            InputError: with the first weight that differs, or the optimisers' different states.
        """
        require_same_shapes(checkpoint["state_dict"], self.state_dict())
        require_finite_weights(checkpoint["state_dict"], "the checkpoint")
        if self.trainer.state.fn == TrainerFn.FITTING:
            trained = [each for each in self.sae.parameters() if each.requires_grad]
            require_same_optimiser(checkpoint, self.optimizer, True, trained)
        self._explained_variance = checkpoint.get("explained_variance", math.nan)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the explained variance, which the finished SAE's metadata report."""
        checkpoint["explained_variance"] = self._explained_variance

    def on_train_end(self) -> None:
        """Saves the finished SAE."""
        self._finish()

    def on_fit_end(self) -> None:
        """Saves the SAE also if the run was interrupted after its last checkpoint, when no step is left to train."""
        if not self._is_saved:
            self._finish()

    def _finish(self) -> None:
        """Saves the finished SAE in the format of `sae_lens.SAE.load_from_disk`."""
        self._is_saved = True
        sae = self._finished()
        if self.trainer.is_global_zero:
            describe(sae, self.data.model, self._explained_variance)
            known = {"context_size": self.data.max_tokens, "training_tokens": int(self.activity.trained)}
            known |= {"norm_scale_folded": float(self.scale), "frozen_decoder": self.freeze_decoder}
            for name, value in known.items():
                sae.cfg.metadata[name] = value
            save(sae, self.folder)
            rank_zero_info(f"the SAE is in {self.folder}")
        self.trainer.strategy.barrier("SAE saved")
