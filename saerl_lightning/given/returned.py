"""What methods of a user's class return: numbers of any kind become arrays, anything else is refused with its method.

`said` begins each message, as in "LastDigit.difficulty returned". N prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse import csr_array
from torch import Tensor

from saerl_lightning.errors import InputError, shown
from saerl_lightning.plan import NO_CLUSTER, SamplePlan, misplaced
from saerl_lightning.records import Prompt

RATINGS = "numbers, one a prompt in the order of `prompts`, with NaN for no rating"
CLUSTERS = (
    "whole numbers from 0, one a prompt, with -1 for no cluster; np.unique(names, return_inverse=True)[1] numbers names"
)
TRUTHS = "truths, one a prompt in the order of `prompts`: True keeps it"


def ratings(said: str, value: object, prompts: Sequence[Prompt]) -> Float[np.ndarray, " N"]:
    """Converts to a rating a prompt, as float64. None and NaN are no rating.

    Raises:
        InputError: if it is not a number a prompt, or one is infinite.
    """
    wanted = f"{len(prompts)} {RATINGS}"
    numbers = _numbers(said, value, prompts, wanted)
    _refuse_entry(said, np.isinf(numbers), numbers, prompts, wanted)
    return numbers


def clusters(said: str, value: object, prompts: Sequence[Prompt]) -> Int[np.ndarray, " N"]:
    """Converts to the number of a cluster a prompt, as int64.

    Raises:
        InputError: if it is not a whole number a prompt, or one is below -1.
    """
    wanted = f"{len(prompts)} {CLUSTERS}"
    numbers = _numbers(said, value, prompts, wanted)
    # NaN is neither whole nor at least -1.
    _refuse_entry(said, ~((numbers >= NO_CLUSTER) & (numbers % 1 == 0)), numbers, prompts, wanted)
    return numbers.astype(np.int64)


def truths(said: str, value: object, prompts: Sequence[Prompt]) -> Bool[np.ndarray, " N"]:
    """Converts to true or false a prompt. 0 and 1 will do; positions will not.

    Raises:
        InputError: if it is anything else.
    """
    wanted = f"{len(prompts)} {TRUTHS}"
    numbers = _numbers(said, value, prompts, wanted)
    _refuse_entry(said, ~np.isin(numbers, (0, 1)), numbers, prompts, wanted)
    return numbers.astype(bool)


def batches(said: str, value: object, before: Int[np.ndarray, "B P"]) -> Int[np.ndarray, "B P"]:
    """Converts to whole batches of the rows that were given.

    Raises:
        InputError: if it has another shape, or other rows.
    """
    shape = f"shape {before.shape}, one batch a line"
    array = _array(said, value, f"an array of pool rows in {shape}")
    if array.shape != before.shape or array.dtype.kind not in "iu":
        raise InputError(f"{said} {_seen(value, array)}; return the given rows in {shape}")
    if fault := misplaced(array.ravel(), before.ravel()):
        raise InputError(f"{said} {fault}; return each row once")
    return array.astype(np.int64)


def text(said: str, value: object) -> str:
    """Returns a text as it is.

    Raises:
        InputError: if it is none, or empty.
    """
    if not isinstance(value, str) or not value:
        raise InputError(f"{said} {shown(value)}; return a text")
    return value


def plan(said: str, value: object, before: SamplePlan, prompts: Sequence[Prompt]) -> SamplePlan:
    """Checks that a plan follows from the one before: the same rows, but for those that it drops with a reason.

    Raises:
        InputError: if it is no plan, or its rows or columns do not fit the pool.
    """
    if not isinstance(value, SamplePlan):
        raise InputError(f"{said} {shown(value)}; return a SamplePlan, as `return plan.reorder(rows)` does")
    said = f"{said} a plan"
    if not isinstance(value.rows, np.ndarray) or value.rows.ndim != 1 or value.rows.dtype.kind not in "iu":
        raise InputError(f"{said} whose rows are {_seen(value.rows, np.asarray(value.rows))}; give whole numbers, (M,)")
    kept = before.rows[~np.isin(before.rows, [*value.dropped])] if value.dropped else before.rows
    if fault := misplaced(value.rows, kept):
        raise InputError(f"{said} with {fault}; give each planned row once, or plan.drop({{row: reason}})")
    return replace(
        value,
        cluster=clusters(f"{said} whose cluster is", value.cluster, prompts),
        difficulty=ratings(f"{said} whose difficulty is", value.difficulty, prompts),
        quality=ratings(f"{said} whose quality is", value.quality, prompts),
        mixed_from=clusters(f"{said} whose mixed_from is", value.mixed_from, prompts),
    )


def revision(said: str, value: object, before: SamplePlan, served: int) -> SamplePlan:
    """Checks that a plan goes on from the one before: what was handed out, then what was left, less what it drops.

    Raises:
        InputError: if it is no plan, or its rows are others.
    """
    if not isinstance(value, SamplePlan):
        raise InputError(f"{said} {shown(value)}; return a SamplePlan, as `return plan.go_on(served, rest)` does")
    if not np.array_equal(value.rows[:served], before.rows[:served]):
        raise InputError(f"{said} a plan with other rows among the {served} handed out; give plan.go_on(served, rest)")
    left = before.rows[served:]
    dropped = [row for row in value.dropped if row not in before.dropped]
    if fault := misplaced(value.rows[served:], left[~np.isin(left, dropped)]):
        raise InputError(
            f"{said} a plan with {fault} among those left; give each row of plan.rows[served:] once, or its reason in "
            "plan.go_on(served, rest, dropped={row: reason})"
        )
    return value


def rows(said: str, value: object, count: int) -> csr_array | np.ndarray[Any, Any]:
    """Converts to feature rows, (N, F), of floating-point numbers; sparse ones stay sparse.

    Raises:
        InputError: if it is not a row of numbers a prompt.
    """
    wanted = f"{count} rows of numbers, one a prompt, as an array or a sparse matrix"
    table: Any = csr_array(value) if sparse.issparse(value) else _array(said, value, wanted)
    if len(table.shape) != 2 or table.shape[0] != count or table.dtype.kind not in "biuf":
        raise InputError(f"{said} {_seen(value, table)}; return {wanted}")
    return table if table.dtype.kind == "f" else table.astype(np.float64)


def _numbers(said: str, value: object, prompts: Sequence[Prompt], wanted: str) -> Float[np.ndarray, " N"]:
    array = _array(said, value, wanted)
    if array.shape != (len(prompts),) or array.dtype.kind not in "biufOUS":
        raise InputError(f"{said} {_seen(value, array)}; return {wanted}")
    if array.dtype.kind in "biuf":
        return array.astype(np.float64)
    # NumPy would read numbers in texts, and turn numbers beside texts into texts.
    entries = list(value) if isinstance(value, list | tuple) else array.tolist()
    for prompt, entry in zip(prompts, entries, strict=True):
        if entry is not None and not isinstance(entry, Real):
            _refuse(said, entry, prompt, wanted)
    return np.array([np.nan if entry is None else float(entry) for entry in entries])


def _array(said: str, value: object, wanted: str) -> np.ndarray[Any, Any]:
    """Converts arrays, tensors, columns of tables and lists; refuses what is none of them."""
    value = as_numpy(value)
    if not isinstance(value, list | tuple) and not hasattr(value, "__array__"):
        raise InputError(f"{said} {shown(value)}; return {wanted}")
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(f"{said} {shown(value)} of unequal parts; return {wanted}") from None


def as_numpy(value: object) -> object:
    """Converts a tensor, also one of bfloat16 or with a gradient; returns anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def _seen(value: object, array: np.ndarray[Any, Any] | csr_array) -> str:
    """Describes an array by the class that was given, its shape, and its type where that is no number."""
    if not array.shape:
        return shown(value)
    kind = "" if array.dtype.kind in "biufO" else f"of {array.dtype.name} "
    return f"{shown(value)} {kind}of shape {array.shape}"


def _refuse_entry(
    said: str, wrong: Bool[np.ndarray, " N"], numbers: Float[np.ndarray, " N"], prompts: Sequence[Prompt], wanted: str
) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        _refuse(said, float(numbers[row]), prompts[row], wanted)


def _refuse(said: str, entry: object, prompt: Prompt, wanted: str) -> NoReturn:
    entry = int(entry) if isinstance(entry, float) and entry.is_integer() else entry
    raise InputError(f"{said} {shown(entry)} for prompt '{prompt.uid}'; return {wanted}")
