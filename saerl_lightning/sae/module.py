"""SAEModule: trains a sparse autoencoder of sae-lens on the activations that `ActivationDataModule` serves.

sae-lens brings the architectures, their losses and the file format; Lightning the loop. Here stand the learning-rate
schedule, the count of dead features, the scaling of activations, and the numbers an SAE is judged by. Where the text comes
from and in which order is the datamodule's.
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
from saerl_lightning.sae.harvest import TokenRows
from saerl_lightning.sae.metrics import FeatureActivity, HeldOutText, Reconstruction, firing_counts
from saerl_lightning.training.loggers import SAE as SAE_NAMES
from saerl_lightning.training.loggers import LoggedNames, is_shipped, require_monitored
from saerl_lightning.training.optimization import Gradients, require_same_optimiser, require_steps
from saerl_lightning.training.precision import require_float32_weights
from saerl_lightning.whole_weights import require_finite_weights

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE, TrainStepOutput


def adam(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Adam at a learning rate of 1e-3."""
    return torch.optim.Adam(params, lr=1e-3, fused=True)


def rate_factor(step: int, steps: float, warmup_steps: int, decay: float) -> float:
    """What the learning rate is multiplied by at a step: up to 1 in `warmup_steps`, down to 0 at the run's end.

    Args:
        step: optimiser steps taken so far.
        steps: of the whole run.
        warmup_steps: the first step has 1 / warmup_steps of the full rate; 0 warms nothing.
        decay: share of the steps, at the end, that the fall is spread over; the step after the last would have rate 0.
    """
    rise = (step + 1) / max(1, warmup_steps)
    fall = (steps - step) / (decay * steps) if decay else 1.0
    return max(0.0, min(1.0, rise, fall))


MEASURED_ON = 16_384  # positions that a threshold is set on where no text is held out


class SAEModule(lightning.LightningModule):
    """Trains a sparse autoencoder (SAE) to reconstruct activations from few active features.

    Activations are scaled so that their mean norm is the root of their width, and the decoder's bias starts at their mean;
    the scale is folded into the weights that are saved. BatchTopK takes its k on each process's share of a batch; its
    threshold is set on held-out text when it is judged and saved, so that k features are active on average there.

    Args:
        architecture: of the SAE, a name that sae-lens knows: topk, batchtopk, jumprelu, standard, gated, ...
        expansion: features for each dimension of the activations (F / d).
        d_sae: number of features (F), in place of `expansion`.
        options: further settings of the architecture, as in {k: 32}; sae-lens's own defaults stand for the rest.
        save_to: folder of the finished SAE; null takes `sae` in the run's folder.
        replace: replace an SAE that is in that folder already; a run that is resumed does so unasked.
        optimizer: built over the trained weights.
        warmup_steps: optimiser steps until the full learning rate.
        decay: share of the run, at its end, over which the learning rate falls linearly to 0.
        max_grad_norm: gradients are scaled down to this norm; null does not.
        freeze_decoder: keep the decoder's rows at their random start, and train the rest: the control for what training a
            dictionary adds (arXiv 2602.14111).
        dead_after: positions, over all processes, without firing after which a feature counts as dead; architectures with
            an auxiliary loss revive such features.
        seed: of the weights.

    Raises:
        InputError: if a number is out of its range.
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
        self._explained_variance = math.nan  # as last measured
        self._is_saved = False
        self.register_buffer("scale", torch.zeros(()))  # 0 until it is measured
        require_in_range(self)

    @property
    def data(self) -> ActivationDataModule:
        """The datamodule that serves this run."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, ActivationDataModule):
            raise InputError(
                f"SAEModule reads activations, but data is {type(datamodule).__name__}; write data: ActivationDataModule"
            )
        return datamodule

    @property
    def folder(self) -> Path:
        """Where the finished SAE goes."""
        return Path(self.trainer.default_root_dir, "sae") if self.save_to is None else Path(self.save_to)

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Refuses what can be refused before text or model are read: the first hook of a run. Adds no callbacks."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            require_float32_weights(self.trainer.precision)
            require_steps(self.optimizer, None, self.trainer.strategy.root_device)
            if is_shipped(self):
                require_monitored(self.trainer, LoggedNames(SAE_NAMES, ["loss/"]))
        return []

    def setup(self, stage: str) -> None:
        """Refuses a place to save to before anything is trained."""
        if stage == "fit":
            require_replaceable(self.folder, self.replace or self.trainer.ckpt_path is not None)

    def configure_model(self) -> None:
        """Makes the SAE, once."""
        if hasattr(self, "sae"):
            return
        _, _, width = self.data.model.config()
        features = self.expansion * width if self.d_sae is None else self.d_sae
        self.sae: TrainingSAE[Any] = build(self.architecture, width, features, self.options, self.seed)
        self.sae.W_dec.requires_grad_(not self.freeze_decoder)
        self.activity = FeatureActivity(features, self.dead_after)
        self.window = Reconstruction(width)  # since the last log line
        self.held_out = HeldOutText(width)

    def configure_optimizers(self) -> Any:
        """Builds the optimiser over what is trained, and the schedule over the whole run."""
        steps = self.trainer.estimated_stepping_batches
        if self.decay and not math.isfinite(steps):
            raise InputError(
                "a rate that decays needs the run's end; write trainer.max_steps, trainer.max_epochs, or model.decay 0"
            )
        optimizer = self.optimizer(p for p in self.sae.parameters() if p.requires_grad)
        schedule = LambdaLR(optimizer, lambda step: rate_factor(step, steps, self.warmup_steps, self.decay))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Measures the activations, and makes the validation that a resumed run's checkpoint left to be made."""
        self._measure()
        self.data.resume.validate_if_due(self.trainer)

    @torch.no_grad()
    def _measure(self) -> None:
        """Takes the activations' norm and mean, unless a checkpoint brought them."""
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
        """Descends the architecture's own loss on one batch."""
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
        """Clips, and refuses to step on a gradient that is no number.

        Raises:
            RunStopped: before the step, so the last checkpoint is good.
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
        """Loads the whole model, for as long as the validation lasts."""
        model = self.data.model
        self.held_out.begin(model.load_whole(), model.config()[0], self._finished())

    def _finished(self) -> Any:
        """The SAE as it would be saved now: BatchTopK kinds with a threshold that lets k features be active on average.

        The threshold is set on held-out text, or on what is in memory where none is held out; the mean over processes.
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
        """Judges the SAE on a batch of held-out text."""
        self.held_out.add(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Logs `val/l0`, `val/explained_variance`, the model's losses and the scores they give.

        A score is NaN, and a line says so, where the model does no better with its layer than without it.
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
            self.log(f"val/{name}", value.float(), prog_bar=name in shown, sync_dist=True)  # the same on all ranks

    # -- checkpoints and the result ------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another SAE or optimiser before any weight is loaded.

        Raises:
            InputError: naming the first weight that differs, or what the optimisers keep.
        """
        require_same_shapes(checkpoint["state_dict"], self.state_dict())
        require_finite_weights(checkpoint["state_dict"], "the checkpoint")
        if self.trainer.state.fn == TrainerFn.FITTING:
            trained = [each for each in self.sae.parameters() if each.requires_grad]
            require_same_optimiser(checkpoint, self.optimizer, True, trained)
        self._explained_variance = checkpoint.get("explained_variance", math.nan)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what the finished SAE's folder says of it."""
        checkpoint["explained_variance"] = self._explained_variance

    def on_train_end(self) -> None:
        """Saves the finished SAE."""
        self._finish()

    def on_fit_end(self) -> None:
        """Saves it also where the run was killed between its last checkpoint and the folder: then no step was left."""
        if not self._is_saved:
            self._finish()

    def _finish(self) -> None:
        """Saves the finished SAE, as `sae_lens.SAE.load_from_disk` opens it."""
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
