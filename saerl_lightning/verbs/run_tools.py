"""`plan`, `label`, `show` and `memory`: commands that read the same configs and flags as a run, but train nothing.

A method's signature defines the command's own arguments; its body is in the module of that name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import lightning

from saerl_lightning.verbs.names import COMPOSED

if TYPE_CHECKING:
    from saerl_lightning.data.module import PromptDataModule
    from saerl_lightning.training.grpo import GRPOModule
    from saerl_lightning.training.policy_module import PolicyModule

# Arguments of each tool that are not flags of the command line.
ARGUMENTS = {tool: {"model", "datamodule"} for tool in COMPOSED}
# `for` is what one would write, and no name that a Python argument may have.
ALIASES = {"--for": "--export_for"}


class ToolTrainer(lightning.Trainer):
    """Lightning's trainer with `plan` and `label` as further commands."""

    def plan(
        self,
        model: lightning.LightningModule,
        datamodule: lightning.LightningDataModule,
        out: str = "plan",
        against: str | None = None,
        export: str | None = None,
        export_for: Literal["trl", "verl", "open-instruct", "jsonl"] | None = None,
    ) -> None:
        """Makes the plan and shows it, without training: runs all operations up to the first step.

        Args:
            model: Module of the run; only its tokenizer is read.
            datamodule: Datamodule whose plan is made.
            out: Folder that `ledger.parquet` and `plan.html` are written to.
            against: Path of another plan's `ledger.parquet` to compare with; null compares with none.
            export: New folder for the planned prompts in another trainer's form, in their order; null writes none.
            export_for: Trainer that reads the exported prompts (also written `--for`); null takes `jsonl`, our own
                form.
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
        actors: int = 0,
        cpus: float = 1.0,
        gpus: float = 0.0,
    ) -> None:
        """Measures pass rates: the policy answers a sample of the training prompts, and a reward grades the answers.

        Args:
            model: Module of the run, whose policy answers.
            datamodule: Datamodule whose training prompts are sampled.
            out: File that labels are written to, one line a prompt; an existing file is resumed.
            prompts: Number of prompts in the sample (n_lab); all, if there are fewer.
            samples: Number of completions of each prompt.
            seed: Seed of the sample and of the completions.
            actors: Number of Ray actors that measure, each with a policy and an engine; 0 measures in this process.
            cpus: Number of CPUs that Ray reserves for each actor.
            gpus: Number of GPUs that Ray reserves for each actor.
        """
        from saerl_lightning.verbs.label import label

        policy, data = cast("PolicyModule", model), cast("PromptDataModule", datamodule)
        label(policy, data, self, out, prompts, samples, seed, actors, cpus, gpus)

    def show(
        self,
        model: lightning.LightningModule,
        datamodule: lightning.LightningDataModule,
        prompt: str | None = None,
        completion: str | None = None,
        tokens: bool = False,
        sample: bool = False,
    ) -> None:
        """Prints one prompt as the model sees it, and an answer to it as the rewards see and grade it.

        Args:
            model: The run's module; its weights are loaded where an answer is sampled.
            datamodule: The run's training prompts.
            prompt: Id of the prompt; null takes the first one.
            completion: Answer that is graded; null takes the right answer in a box.
            tokens: Whether to print every token with its id and its role.
            sample: Whether the policy samples the answer, as in training.
        """
        from saerl_lightning.verbs.show import show

        show(
            cast("PolicyModule", model), cast("PromptDataModule", datamodule), self, prompt, completion, tokens, sample
        )

    def memory(
        self,
        model: lightning.LightningModule,
        datamodule: lightning.LightningDataModule,
        card: float = 80.0,
        cards: int = 1,
    ) -> None:
        """Estimates the memory of a training step on GPUs that need not be here, and tells whether it fits.

        Args:
            model: Module of the run; only its settings are read.
            datamodule: Datamodule of the run; its prompts are not read.
            card: Memory of one GPU in GB.
            cards: Number of GPUs, which share the batch, and with `--trainer.strategy sharded` the policy too.
        """
        from saerl_lightning.verbs.card_memory import tell_memory

        tell_memory(cast("GRPOModule", model), cast("PromptDataModule", datamodule), self, card, cards)

    def simulate(
        self,
        model: lightning.LightningModule,
        datamodule: lightning.LightningDataModule,
        steps: int = 100,
        seeds: int = 8,
        label: str = "difficulty",
        rates: str | None = None,
        offset: float = 0.0,
        shift: float = 0.0,
        out: str | None = None,
    ) -> None:
        """Plays data.online over prompts with known pass rates, beside the plan as it is and an oracle. Nothing learns.

        Args:
            model: Module of the run; its tokenizer and group size are read.
            datamodule: Datamodule of the run.
            steps: Number of steps of each play.
            seeds: Number of plays, each with a starting order and answers of its own.
            label: Label from 0 (always right) to 100 (always wrong) that gives the true pass rates.
            rates: Path of a run's `served.parquet`, whose measured pass rates are taken in place of the label; prompts
                that it did not measure are left out. Null reads the label.
            offset: Number added to the logits of all pass rates; below 0 the prompts are harder.
            shift: Number that each step adds to the logits, as a policy that gets better.
            out: File for the numbers of every play, as JSON; null writes none.
        """
        from saerl_lightning.verbs.simulate import simulate

        policy, data = cast("PolicyModule", model), cast("PromptDataModule", datamodule)
        simulate(policy, data, self, steps, seeds, label, rates, offset, shift, out)

    def serve(
        self,
        model: lightning.LightningModule,
        datamodule: lightning.LightningDataModule,
        print_commands: bool = False,
    ) -> None:
        """Starts the vLLM servers of a run on this machine and keeps them until Ctrl-C; engine.server has their options.

        Args:
            model: Module of the run; its weights are not loaded here.
            datamodule: Datamodule of the run; its prompts are not read.
            print_commands: Whether to print the commands for other machines in place of starting servers.
        """
        from saerl_lightning.verbs.serve import serve

        serve(cast("PolicyModule", model), cast("PromptDataModule", datamodule), self, print_commands)
