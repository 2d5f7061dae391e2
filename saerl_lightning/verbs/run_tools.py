"""The tools that read the same configs and flags as a run, but train nothing: `plan` and `label`.

A method's signature is the tool's own part of the command line; its body stands in the tool's file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import lightning

from saerl_lightning.verbs.names import COMPOSED

if TYPE_CHECKING:
    from saerl_lightning.data.module import PromptDataModule
    from saerl_lightning.training.policy_module import PolicyModule

ARGUMENTS = {tool: {"model", "datamodule"} for tool in COMPOSED}  # by tool: what is not the user's to write
# `for` is what one would write, and no name that a Python argument may have.
ALIASES = {"--for": "--export_for"}


class ToolTrainer(lightning.Trainer):
    """Lightning's trainer with the composed tools as further verbs."""

    def plan(
        self,
        model: lightning.LightningModule,
        datamodule: lightning.LightningDataModule,
        out: str = "plan",
        against: str | None = None,
        export: str | None = None,
        export_for: Literal["trl", "verl", "open-instruct", "jsonl"] | None = None,
    ) -> None:
        """Makes the plan and shows it, without training: everything up to the first step.

        Args:
            model: of the run; only its tokenizer is read.
            datamodule: of the run.
            out: folder that `ledger.parquet` and `plan.html` are written to.
            against: another plan's `ledger.parquet` to compare with.
            export: New folder for the planned prompts in another trainer's form, in their order; null writes none.
            export_for: Trainer that reads the exported prompts (also written `--for`); null takes `jsonl`, our own form.
        """
        from saerl_lightning.verbs.plan import plan

        plan(cast("PolicyModule", model), cast("PromptDataModule", datamodule), self, out, against, export, export_for)

    def label(
        self,
        model: lightning.LightningModule,
        datamodule: lightning.LightningDataModule,
        out: str = "labels.jsonl",
        prompts: int = 256,
        samples: int = 8,
        seed: int = 0,
    ) -> None:
        """Measures pass rates: the policy answers a sample of the training prompts, and the answers are graded.

        Args:
            model: of the run; its policy answers.
            datamodule: of the run; its training prompts are sampled.
            out: file that labels are written to, one line a prompt; a file that is there is gone on with.
            prompts: how many are sampled (n_lab).
            samples: completions a prompt.
            seed: of the sample and of the completions.
        """
        from saerl_lightning.verbs.label import label

        label(cast("PolicyModule", model), cast("PromptDataModule", datamodule), self, out, prompts, samples, seed)
