"""Prompts of bytes, a datamodule that serves them, and a module that records what it is served."""

import warnings

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saerl_lightning.data.clustering import TopicClusters
from saerl_lightning.data.curriculum import LabelOrder
from saerl_lightning.data.mixing import TailMixing
from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.online.history import Groups
from saerl_lightning.online.operation import Learner
from saerl_lightning.online.rules.rule import Arrangement
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Outcomes, Prompt
from saerl_lightning.signals.random_signals import RandomSignals

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.chat_template = CHATML
    return tokenizer


TOKENIZER = byte_tokenizer()


class ListPrompts(PromptSource):
    """Prompts from memory; counts how often they are read."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self.prompts = prompts
        self.loads = 0

    def load(self) -> list[Prompt]:
        self.loads += 1
        return list(self.prompts)


def prompts(count: int, name: str = "p", length: int = 5) -> list[Prompt]:
    return [
        Prompt.asking(
            f"{name}{i}",
            f"{name} {i} ".ljust(length, "."),
            str(i),
            topic="ab"[i % 2],
            labels={"difficulty": float(i * 7 % 11)},
        )
        for i in range(count)
    ]


class CountingSignals(RandomSignals):
    """Counts how often features are computed."""

    calls = 0

    def features(self, prompts):
        self.calls += 1
        return super().features(prompts)


def make(count: int = 14, **arguments) -> PromptDataModule:
    """Three batches of four and two left over, all four operations on."""
    arguments = {
        "train": ListPrompts(prompts(count)),
        "batch_size": 4,
        "clustering": TopicClusters(),
        "curriculum": LabelOrder(),
        "mixing": TailMixing(0.25),
    } | arguments
    return PromptDataModule(**arguments)


def outcomes(uids: list[str], rewards: torch.Tensor) -> Outcomes:
    """Outcomes whose only reward is 1 for right answers; NaN where the grader failed. Three tokens an answer."""
    right, graded = rewards.nansum(1), (~rewards.isnan()).sum(1)
    varied = (right > 0) & (right < graded)
    return Outcomes(uids, rewards, right, graded, varied, torch.full_like(graded, 3 * rewards.shape[1]))


def outcomes_of_counts(uids: list[str], right: list[float], graded: int = 8) -> Outcomes:
    """Outcomes of groups of which so many answers are right; 20 tokens an answer."""
    counts = torch.tensor(right, dtype=torch.float32)
    all_graded, varied = torch.full((len(uids),), graded), (counts > 0) & (counts < 8)
    return Outcomes(list(uids), torch.zeros(len(uids), 8), counts, all_graded, varied, 20 * all_graded)


class Recorder(lightning.LightningModule):
    """A policy of one weight that notes the rows it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.tokenizer = TOKENIZER
        self.served: list[list[int]] = []
        self.validated: list[tuple[int, list[str]]] = []

    def configure_optimizers(self):
        # Asking for the number of steps makes Lightning begin the epoch before the loops' state is restored.
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        assert [p.uid for p in batch.prompts] == [f"p{row}" for row in batch.rows]
        assert TOKENIZER.decode(batch.ids[0]) == f"<user>{batch.prompts[0].text}\n<assistant>"
        self.optimizers().zero_grad()
        self.manual_backward((self.weight - sum(batch.rows)).square().sum() * 1e-4)
        self.optimizers().step()
        self.served.append(batch.rows)
        uids = [p.uid for p in batch.prompts]
        self.trainer.datamodule.observe(outcomes(uids, self.rewards(batch.rows)))

    def rewards(self, rows):
        return torch.zeros(len(rows), 2)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.validated.append((dataloader_idx, [p.uid for p in batch.prompts]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        self.validation_step(batch, batch_idx, dataloader_idx)
        return batch.rows


class SaveEverywhere(Callback):
    """Saves after every batch, validation and epoch, as ModelCheckpoint may."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}-batch.ckpt")

    def on_validation_end(self, trainer, *_) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}-validation.ckpt")

    def on_train_epoch_end(self, trainer, *_) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}-epoch.ckpt")


def trainer(**arguments) -> lightning.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        **quiet | {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1} | arguments
    )


def fit(data, ckpt_path=None, **arguments) -> Recorder:
    module = Recorder()
    trainer(**arguments).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


@pytest.fixture(autouse=True)
def a_quiet_trainer():
    """Lightning's own advice about logging is not under test; everything else still fails."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of training batches")
        warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
        warnings.filterwarnings("ignore", message="GPU available but not used")
        yield


class Refilling(Recorder):
    """Takes up to three of the plan's next prompts into a step, how many its batch says, in one or two rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.batches_seen: list[int] = []

    def training_step(self, batch, batch_idx):
        wanted = batch.rows[0] % 4
        rounds = [self.trainer.datamodule.next_prompts([count]) for count in (wanted - wanted // 2, wanted // 2)]
        rows = [row for taken in rounds if taken is not None for row in taken.rows]
        self.batches_seen.append(batch_idx)
        super().training_step(self.trainer.datamodule.pool.batch([*batch.rows, *rows]), batch_idx)


class ByResults(Learner):
    """Serves first what has the fewest right answers so far, plus a random number below 3."""

    def begin(self, plan, prompts, features):
        self.right = np.zeros(len(prompts))

    def learn(self, groups: Groups) -> None:
        self.right[groups.rows] += groups.right + 1

    def arrange(self, plan, rest, random):
        return Arrangement(np.argsort(self.right[rest] + random.integers(0, 3, len(rest)), kind="stable"))

    def state_dict(self):
        return super().state_dict() | {"right": torch.from_numpy(self.right.copy())}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.right = state["right"].numpy().copy()
