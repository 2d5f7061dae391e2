"""Classifier: a sequence classifier that scores rows of tokens in batches of a bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Output = Literal["logit", "probability"]


class Classifier:
    """Scores rows of tokens.

    Args:
        model: Sequence classifier on its device.
        label: Index of the class that is scored.
        batch_tokens: Largest number of tokens of a batch, padding included; a longer row is a batch of its own.
    """

    def __init__(self, model: PreTrainedModel, label: int, batch_tokens: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.label = label
        self.batch_tokens = batch_tokens
        # Where padding is told by an id; models that score the last token look for the last other one.
        self._text_config: Any = model.config.get_text_config()
        self._text_config.use_cache = False

    @torch.inference_mode()
    def scores(self, rows: Sequence[Sequence[int]], output: Output) -> Float[Tensor, " R"]:
        """Computes the scores of the rows on the CPU, in their order.

        Args:
            rows: Token ids of each row, at least one.
            output: Whether to give the logit of the label or its probability.
        """
        logits = torch.full((len(rows), self._labels), torch.nan)
        for batch in by_tokens([len(row) for row in rows], self.batch_tokens):
            logits[batch] = self._logits([rows[row] for row in batch])
        if output == "logit":
            return logits[:, self.label]
        return logits[:, 0].sigmoid() if self._labels == 1 else logits.softmax(1)[:, self.label]

    @property
    def _labels(self) -> int:
        return int(self.model.config.num_labels or 0)

    def _logits(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "b C"]:
        given = self._text_config.pad_token_id
        pad = given if given is not None else unused_id(rows, self._text_config.vocab_size)
        if pad is None:
            return torch.cat([self._forward([row], 0) for row in rows])
        try:
            self._text_config.pad_token_id = pad if len(rows) > 1 else given
            return self._forward(rows, pad)
        finally:
            self._text_config.pad_token_id = given

    def _forward(self, rows: Sequence[Sequence[int]], pad: int) -> Float[Tensor, "b C"]:
        width, device = max(map(len, rows)), self.model.device
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        # The trainer's precision is none of the reward's: grading in a second thread is not under its autocast either.
        with torch.autocast(device.type, enabled=False):
            return self.model(input_ids=ids, attention_mask=mask).logits.float().cpu()


def by_tokens(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Groups rows of similar length, the longest first, so that a padded group has at most so many tokens.

    Args:
        lengths: Number of tokens of each row.
        most: Largest number of tokens of a group; a longer row is alone.

    Returns:
        Positions of the rows of each group.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= most:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def unused_id(rows: Iterable[Sequence[int]], vocabulary: int) -> int | None:
    """Returns the smallest token id that no row has, to pad with; None if there is none."""
    used = set(chain.from_iterable(rows))
    return next((token for token in range(vocabulary) if token not in used), None)


def label_index(config: Any, label: int | str | None, path: str) -> int:
    """Finds the class that is scored.

    Args:
        config: Configuration of the classifier.
        label: Index or name of the class; null takes the only one.
        path: Place of the classifier, for messages.

    Raises:
        InputError: if there is no such class, or several and none is named; the message lists them.
    """
    names = [str(config.id2label.get(index, index)) for index in range(config.num_labels)]
    there = f"'{path}' has {len(names)} label{'s' * (len(names) != 1)}: {', '.join(names[:20])}"
    if label is None and len(names) == 1:
        return 0
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    if isinstance(label, str) and names.count(label) == 1:
        return names.index(label)
    if label is None:
        raise InputError(f"{there}; name the one that is the grade as ModelReward.label")
    raise InputError(f"ModelReward.label is {label!r}, and {there}{did_you_mean(str(label), names)}")
