"""Anchors: pass rates of another policy, as a label of each prompt from 0 (all right) to 100 (all wrong).

N prompts in the pool, K that are certainly planned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from saerl_lightning.data.labels import read_label
from saerl_lightning.errors import InputError, program
from saerl_lightning.records import Prompt


def anchor_rates(reader: str, argument: str, label: str, prompts: Sequence[Prompt]) -> Float[np.ndarray, " N"]:
    """Reads an anchor's pass rate of every prompt, from 0 to 1; NaN for prompts without the label.

    Args:
        reader: Name of the class that reads the label, for messages.
        argument: Name of its argument that names the label.
        label: Name of the label, as in `Prompt.labels`.
        prompts: Prompts of the pool (N).

    Raises:
        InputError: if no prompt has the label, or one has a number outside 0 to 100.
    """
    values = read_label(reader, label, prompts, argument)
    outside = (values < 0) | (values > 100)
    if outside.any():
        row = int(outside.argmax())
        raise InputError(
            f"{reader}.{argument} is {label!r}, which is {values[row]:.10g} for '{prompts[row].uid}'; name a label from 0 "
            "(another policy answers right always) to 100 (never)"
        )
    return 1 - values / 100


def require_anchor(
    reader: str, argument: str, label: str, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]
) -> None:
    """Refuses prompts of which most lack an anchor's label.

    Args:
        reader: Name of the class that reads the label, for messages.
        argument: Name of its argument that names the label.
        label: Name of the label, as in `Prompt.labels`.
        prompts: Prompts of the pool, followed by the reference prompts.
        planned: Rows that are certainly planned; with none, all prompts count.

    Raises:
        InputError: if more than half of them lack it, no prompt has it, or one has a number outside 0 to 100.
    """
    rows = planned if len(planned) else np.arange(len(prompts))
    lacking = rows[np.isnan(anchor_rates(reader, argument, label, prompts)[rows])]
    if 2 * len(lacking) > len(rows):
        raise InputError(
            f"{reader}.{argument} is {label!r}, and {len(lacking)} of {len(rows)} prompts lack it (first: "
            f"'{prompts[int(lacking.min())].uid}'); label most of them (`{program()} label` measures difficulty), or write "
            "a belief without labels, such as PromptBeta"
        )
