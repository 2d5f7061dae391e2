"""PromptDataModule: the pool, the plan that the operations made of it, and the loaders that serve it.

It decides nothing about order itself: operations do, in the order the science fixes (filtering, clustering, curriculum,
mixing, extra). It owns the one thing they can't: the cursor, so that a resumed run goes on with the next prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning
from lightning.pytorch.trainer.states import TrainerFn

from saerl_lightning.data.callback import Clustering, Curriculum, DataCallback, Filtering, Mixing
from saerl_lightning.data.planning import make_plan, plan_digest
from saerl_lightning.data.pool import PromptPool
from saerl_lightning.data.sampler import PlanSampler, PromptLoader
from saerl_lightning.data.validation import EvaluationPool, ValidationSet
from saerl_lightning.errors import InputError
from saerl_lightning.plan import SamplePlan
from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.records import Outcomes, PromptBatch, Sampling
from saerl_lightning.signals.source import SignalSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_CHAT = ChatTemplate()
FOUR_SAMPLES = Sampling(group_size=4)


class PromptDataModule(lightning.LightningDataModule):
    """Serves prompts in the order that the configured operations planned.

    Args:
        train: path of the training prompts, or a source.
        val: named sets to validate on: a path, a source, or a set with its own sampling.
        test: named sets for `test` and `predict`; null uses those of `val`.
        batch_size: prompts a step (P), over all processes.
        chat: how prompts become token ids, and how long they may be.
        signals: what computes feature rows for the operations that read them; null for none.
        filtering: which prompts to drop; null for none.
        clustering: what makes batches of one cluster each; null for none.
        curriculum: what orders them easy-to-hard; null for none.
        mixing: what blends neighbouring batches; null for none.
        extra: further operations, applied after the four.
        shuffle_seed: of the order that operations start from; null keeps the source's order.
        val_sampling: how completions are drawn for sets without a sampling of their own.
        val_batch_size: prompts a validation batch, on each process.

    Raises:
        InputError: if a batch size is below 1.
    """

    def __init__(
        self,
        train: str | PromptSource,
        val: dict[str, str | ValidationSet | PromptSource] | None = None,
        test: dict[str, str | ValidationSet | PromptSource] | None = None,
        batch_size: int = 8,
        chat: ChatTemplate = PLAIN_CHAT,
        signals: SignalSource | None = None,
        filtering: Filtering | None = None,
        clustering: Clustering | None = None,
        curriculum: Curriculum | None = None,
        mixing: Mixing | None = None,
        extra: list[DataCallback] | None = None,
        shuffle_seed: int | None = 0,
        val_sampling: Sampling = FOUR_SAMPLES,
        val_batch_size: int = 32,
    ) -> None:
        super().__init__()
        for name, size in {"batch_size": batch_size, "val_batch_size": val_batch_size}.items():
            if size < 1:
                raise InputError(f"data.{name} is {size}; write 1 or more")
        self.train = train
        self.val = val or {}
        self.test = test or self.val
        self.batch_size = batch_size
        self.chat = chat
        self.signals = signals
        slots = {"filtering": filtering, "clustering": clustering, "curriculum": curriculum, "mixing": mixing}
        slots |= {f"extra.{i}": callback for i, callback in enumerate(extra or [])}
        self.operations: dict[str, DataCallback] = {name: c for name, c in slots.items() if c is not None}
        self.shuffle_seed = shuffle_seed
        self.val_sampling = val_sampling
        self.val_batch_size = val_batch_size
        self.tokenizer: PreTrainedTokenizerBase | None = None  # set it before `setup` where there is no trainer
        self._pool: PromptPool | None = None
        self._plan: SamplePlan | None = None
        self._digest = ""
        self._sampler: PlanSampler | None = None
        self._start = 0  # batch the next training loader begins with
        self._val_pools: list[EvaluationPool] = []
        self._test_pools: list[EvaluationPool] = []

    @property
    def pool(self) -> PromptPool:
        """The training prompts with their token ids, in the source's order."""
        assert self._pool is not None, "setup('fit') reads the pool"
        return self._pool

    @property
    def plan(self) -> SamplePlan:
        """The order of training, with the reason for every prompt's fate."""
        assert self._plan is not None, "setup('fit') makes the plan"
        return self._plan

    @property
    def val_names(self) -> list[str]:
        """Names of the validation sets, in the order of their loaders."""
        return [each.name for each in self._val_pools]

    @property
    def test_names(self) -> list[str]:
        """Names of the test sets, in the order of their loaders."""
        return [each.name for each in self._test_pools]

    @property
    def samplings(self) -> list[Sampling]:
        """How completions are drawn for each set that is read."""
        return [each.sampling for each in self._val_pools + self._test_pools]

    @property
    def topics(self) -> list[str]:
        """Topics that occur in the sets that are read, sorted."""
        pools = [each.pool for each in self._val_pools + self._test_pools]
        return sorted({prompt.topic for pool in pools for prompt in pool.prompts if prompt.topic is not None})

    def val_set(self, index: int) -> Sampling:
        """How completions are drawn for the validation set of a loader."""
        return self._val_pools[index].sampling

    def test_set(self, index: int) -> Sampling:
        """How completions are drawn for the test set of a loader."""
        return self._test_pools[index].sampling

    def setup(self, stage: str | None = None) -> None:
        """Reads what the stage needs and was not read yet; None reads everything.

        Raises:
            InputError: if a source can't be read, an operation lacks its input, or too few prompts are left.
        """
        if stage in (None, "fit", "validate") and not self._val_pools:
            self._val_pools = self._read(self.val)
        if stage in (None, "test", "predict") and not self._test_pools:
            self._test_pools = self._read(self.test)
        if stage in (None, "fit") and self._plan is None:
            self._set_up_training()
        if stage == "fit" and self.trainer is not None and not self.val:
            self.trainer.limit_val_batches = 0  # Lightning takes an empty list of loaders for one empty loader

    def _set_up_training(self) -> None:
        pool = PromptPool.read("data.train", self.train, self.chat, self._find_tokenizer())
        for each in self._val_pools:
            each.warn_of_shared(pool)
        plan = make_plan(pool.prompts, pool.too_long, self.batch_size, self.shuffle_seed, self.signals, self.operations)
        self._pool, self._plan, self._digest = pool, plan, plan_digest(plan, pool.prompts)

    def _read(self, sets: dict[str, str | ValidationSet | PromptSource]) -> list[EvaluationPool]:
        tokenizer = self._find_tokenizer()
        return [EvaluationPool.read(n, given, self.chat, tokenizer, self.val_sampling) for n, given in sets.items()]

    def _find_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            self.tokenizer = getattr(getattr(self.trainer, "lightning_module", None), "tokenizer", None)
        if self.tokenizer is None:
            raise InputError("no tokenizer: the model has none; set `datamodule.tokenizer` before `setup`")
        return self.tokenizer

    def train_dataloader(self) -> PromptLoader:
        """Serves this process's share of the plan, from the checkpoint's cursor on the first pass."""
        self._sampler = PlanSampler(self.plan.batches(), self._start, *self._place)
        self._start = 0
        return PromptLoader(self._sampler, self.pool.batch)

    def val_dataloader(self) -> list[PromptLoader]:
        """Serves the validation sets, one loader a set."""
        return self._loaders(self._val_pools)

    def test_dataloader(self) -> list[PromptLoader]:
        """Serves the test sets, one loader a set."""
        return self._loaders(self._test_pools)

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(self, batch: PromptBatch, device: Any, dataloader_idx: int) -> PromptBatch:
        """Returns the batch as it is: it holds no tensors."""
        return batch

    def _loaders(self, pools: list[EvaluationPool]) -> list[PromptLoader]:
        if not pools:
            raise InputError(
                "nothing to evaluate on: data.val (or data.test) names no set; write e.g. {dev: dev.jsonl}"
            )
        return [PromptLoader(each.batches(self.val_batch_size, *self._place), each.pool.batch) for each in pools]

    @property
    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    @property
    def cursor(self) -> int:
        """Batches trained in this epoch."""
        return self._start if self._sampler is None else self._sampler.cursor

    def advance(self) -> None:
        """Counts one batch as trained. `observe` does so; a module without outcomes calls this instead."""
        assert self._sampler is not None, "train_dataloader() comes first"
        self._sampler.advance()

    def observe(self, outcomes: Outcomes) -> None:
        """Tells the operations what a trained batch learned about its prompts, and counts the batch."""
        for operation in self.operations.values():
            operation.observe(outcomes)
        self.advance()

    def metrics(self) -> dict[str, float]:
        """The operations' numbers, named `data/<slot>/<metric>`."""
        named = [(slot, operation.metrics()) for slot, operation in self.operations.items()]
        return {f"data/{slot}/{key}": value for slot, metrics in named for key, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Holds the cursor, a digest of the plan, and the operations' states; nothing before training is set up."""
        if self._plan is None:
            return {}
        epoch = self._plan.batches().shape[0] if self.trainer is None else self.trainer.num_training_batches
        states = {slot: operation.state_dict() for slot, operation in self.operations.items()}
        return {"cursor": int(self.cursor % epoch), "plan": self._digest, "operations": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the checkpoint stopped; `validate`, `test` and `predict` take nothing from it.

        Raises:
            InputError: if the checkpoint served another plan.
        """
        if self._plan is None or (self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING):
            return
        if state_dict["plan"] != self._digest:
            raise InputError(
                f"the checkpoint's training plan is {state_dict['plan']}, this run's is {self._digest}: data.train, "
                "batch_size, shuffle_seed or an operation differs; give those of the checkpoint's config.yaml, or "
                "start a new run from its weights without --ckpt_path"
            )
        self._start, self._sampler = state_dict["cursor"], None
        for slot, operation in self.operations.items():
            operation.load_state_dict(state_dict["operations"].get(slot, {}))
