"""FunctionReward: a function of the user's own, in TRL's form or in verl's, called in killable processes."""

from __future__ import annotations

import logging
import math
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning.errors import InputError, shown
from saerl_lightning.given.parts import refuse_no_list, require_part
from saerl_lightning.ranges import Deadline, Finite, Workers, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.failures import Failures
from saerl_lightning.reward.function_arguments import GRADED, require_arguments
from saerl_lightning.reward.function_source import described, source_of
from saerl_lightning.reward.jobs.user_function import LOGGING, Returned, call, load
from saerl_lightning.reward.reward import ABSTAINED, Reward
from saerl_lightning.reward.workers import OVERRAN, WorkerPool

log = logging.getLogger(__name__)

GRACE_S = 2.0  # an async call is given up on by its own process first, which costs that call alone
GIVEN = GRADED | {"data_source", "ground_truth", "extra_info"}


class FunctionReward(Reward):
    """Gives what a function of your own returns.

    The function has TRL's form, `accuracy(completions, prompts, **columns)`, which returns a list with one number a
    completion; or verl's, `compute_score(data_source, solution_str, ground_truth, extra_info)`, which returns a number or a
    dict with `score`. Which of the two is told from the names of its parameters. It may be `async`. It runs in processes of
    its own; `docs/howto/reward.md` has examples.

    A call that raises, crashes or overruns its deadline costs the completion that caused it: NaN, not graded. A function in
    TRL's form is called again for that, completion by completion; where all of the first `workers` of them overrun too, the
    others are given up. None means that the reward does not apply: it adds nothing, and the logged mean leaves it out.

    Args:
        function: Place of the function, as `my_rewards.py:accuracy` or `my_package.rewards.accuracy`; in Python, also the
            function itself.
        weight: Factor of this reward in the sum that is maximised.
        name: Name of this reward in the logs; null takes the function's.
        workers: Number of processes that call the function.
        deadline_s: Seconds one call may take: for all completions of a prompt in TRL's form, for one completion in verl's.
        messages: Whether a function in TRL's form gets prompts and completions as lists of messages, so that a text is
            `completion[0]["content"]`, and not as texts. Null does as TRL: where the column `prompt` of the row is a list
            of messages.

    Attributes:
        may_abstain: A function may return None.

    Raises:
        InputError: if the function can't be imported, has neither form, or takes no such argument.
    """

    may_abstain = True

    def __init__(
        self,
        function: str | Callable[..., Any],
        weight: Finite = 1.0,
        name: str | None = None,
        workers: Workers = 2,
        deadline_s: Deadline = 10.0,
        messages: bool | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        self.function = function
        self.arguments = dict(arguments or {})
        self.messages = messages
        self.weight = weight
        self.workers = workers
        self.deadline_s = deadline_s
        self.failures = Failures()  # kinds are what a call did
        require_in_range(self)
        self._source = source_of(function)
        self.signature = described(self._source, self._shown)
        require_arguments(self.arguments, self.signature, self._shown)
        self._name = name or self.signature.name
        grace = GRACE_S if self.signature.is_async else 0.0
        self.pool = WorkerPool(workers, deadline_s + grace, partial(load, self._source))
        self._graded = False  # whether a batch was
        self._columns: frozenset[str] | None = None  # that some prompt has; None before any was seen

    @property
    def _shown(self) -> str:
        return self.function if isinstance(self.function, str) else shown(self.function)

    @property
    def last_failure(self) -> str:
        """What the last call that failed did, and for which completion."""
        return self.failures.last

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Refuses prompts none of which has a column that the function needs.

        Raises:
            InputError: naming the column and those that there are.
        """
        self._columns = (self._columns or frozenset[str]()).union(*(_row(prompt) for prompt in prompts))
        there = GIVEN | {*LOGGING} | self._columns | self.arguments.keys()
        missing = [each for each in self.signature.needs if each not in there]
        if "trainer_state" in missing:
            raise InputError(
                f"{self._shown} needs 'trainer_state', which is that of TRL's trainer, and there is none here; give the "
                "parameter a default, as trainer_state=None"
            )
        if missing and prompts:
            columns = ", ".join(sorted(self._columns))
            raise InputError(
                f"{self._shown} needs '{missing[0]}', and no prompt has it; the columns are {columns}. Give the parameter "
                "one of these names, or a default, or a value in arguments"
            )

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Calls the function for every prompt's completions, or for every completion; None gives `ABSTAINED`.

        Raises:
            InputError: if the function returns another length or type than its form has.
        """
        if self._columns is None:
            self.require(prompts)
        group, rows = rollouts.group_size, list(range(len(rollouts.texts)))
        by_prompt = [rows[start : start + group] for start in range(0, len(rows), group)]
        calls = by_prompt if self.signature.form == "trl" else [[row] for row in rows]
        scores = [0.0] * len(rows)
        ask = partial(self._asked, prompts, rollouts)
        for part, returned in zip(calls, ask(calls), strict=True):
            for row, value in self._settled(part, returned, ask).items():
                if isinstance(value, str):
                    self.failures.note(self._shown, value, prompts[row // group].uid, rollouts.texts[row])
                scores[row] = math.nan if isinstance(value, str) else value
        self._warn_of_none(scores)
        return torch.tensor(scores).view(len(prompts), group)

    def _warn_of_none(self, scores: Sequence[float]) -> None:
        """Says once that a function has returned nothing but None so far, as one whose `return` is missing does."""
        if not self._graded and all(str(score) == str(ABSTAINED) for score in scores):
            log.warning(
                f"warning: {self._shown} returned None for all {len(scores)} completions, which says that it does not apply, "
                "and adds nothing to their rewards; if it should grade them, its `return` is missing"
            )
        self._graded = True

    def close(self) -> None:
        """Kills the processes."""
        self.pool.close()

    def _settled(
        self, rows: list[int], returned: Returned, ask: Callable[[list[list[int]]], list[Returned]]
    ) -> dict[int, float | str]:
        """The grade of each row, or what kept it from one; where a call failed, its rows are tried one by one."""
        if not returned.failure:
            values = (ABSTAINED if value is None else value + 0.0 for value in returned.values)
            return dict(zip(rows, values, strict=True))
        if len(rows) == 1:
            return {rows[0]: returned.failure}
        alone = self._alone(rows, ask)
        failed: dict[int, float | str] = {row: each.failure for row, each in alone.items() if each.failure}
        good = [row for row in rows if row not in failed]
        if not failed or not good:
            return dict.fromkeys(rows, returned.failure) | failed
        [again] = ask([good])  # a function may compare the completions of a prompt, so that no single call will do
        if again.failure:
            return dict.fromkeys(rows, again.failure) | failed
        return failed | self._settled(good, again, ask)

    def _alone(self, rows: list[int], ask: Callable[[list[list[int]]], list[Returned]]) -> dict[int, Returned]:
        """A call for each row; where the first ones all overrun, as with a service that is down, the others do not wait."""
        first, others = rows[: self.workers], rows[self.workers :]
        alone = dict(zip(first, ask([[row] for row in first]), strict=True))
        if all(each.failure.startswith(OVERRAN) for each in alone.values()):
            return alone | dict.fromkeys(others, Returned(failure=f"{OVERRAN}, as others of its prompt did,"))
        return alone | dict(zip(others, ask([[row] for row in others]), strict=True))

    def _asked(self, prompts: Sequence[Prompt], rollouts: Rollouts, calls: list[list[int]]) -> list[Returned]:
        """One call for each list of rows."""
        trl = self.signature.form == "trl"
        arguments = [
            self._trl(prompts, rollouts, rows) if trl else self._verl(prompts, rollouts, rows[0]) for rows in calls
        ]
        size = -(-len(calls) // self.workers) if self.signature.is_async else 1
        parts = [arguments[start : start + size] for start in range(0, len(arguments), size)]
        jobs = [(self._source, self.signature.form, part, self.deadline_s) for part in parts]
        returned: list[Returned] = []
        for part, result in zip(parts, self.pool.run(call, jobs), strict=True):
            returned += [Returned(failure=result.failure)] * len(part) if result.failure else result.value
        for each in returned:
            if each.refusal:
                raise InputError(f"{self._shown} returned {each.refusal}")
        return returned

    def _trl(self, prompts: Sequence[Prompt], rollouts: Rollouts, rows: Sequence[int]) -> dict[str, Any]:
        asked = [prompts[row // rollouts.group_size] for row in rows]
        texts = [rollouts.texts[row] for row in rows]
        given: dict[str, Any] = {"prompts": [prompt.text for prompt in asked], "completions": texts}
        if _in_messages(asked[0]) if self.messages is None else self.messages:
            given["prompts"] = [[dict(message) for message in prompt.messages] for prompt in asked]
            given["completions"] = [[{"role": "assistant", "content": text}] for text in texts]
        if self._takes("completion_ids"):
            given["completion_ids"] = [rollouts.tokens[row][rollouts.mask[row]].tolist() for row in rows]
        columns = [_row(prompt) for prompt in asked]
        names = frozenset[str]().union(*columns) if self.signature.takes_all else self._columns or frozenset()
        wanted = (names | set(self.signature.needs)) - GIVEN - self.arguments.keys()
        given |= {name: [column.get(name) for column in columns] for name in wanted if self._takes(name)}
        return {name: value for name, value in given.items() if self._takes(name)} | self.arguments

    def _verl(self, prompts: Sequence[Prompt], rollouts: Rollouts, row: int) -> dict[str, Any]:
        prompt = prompts[row // rollouts.group_size]
        columns, takes = _row(prompt), self.signature.takes
        own: dict[str, Any] = {
            "data_source": prompt.source,
            "solution_str": rollouts.texts[row],
            "ground_truth": prompt.answer,
        }
        if "extra_info" in takes:
            own["extra_info"] = columns["extra_info"] if "extra_info" in columns else dict(columns)
        wanted = [name for name in takes if name in own or name in columns or name in self.signature.needs]
        return {name: own[name] if name in own else columns.get(name) for name in wanted} | self.arguments

    def _takes(self, name: str) -> bool:
        return name in self.signature.takes or self.signature.takes_all


def as_rewards(place: str, given: object) -> list[Reward]:
    """Returns a list of rewards, in which functions are wrapped.

    Args:
        place: Class and argument, for messages.
        given: Rewards and functions, as a user gave them.

    Raises:
        InputError: if it is no list, or one of it is neither reward nor function, or a function has no form that is known.
    """
    if not isinstance(given, list | tuple):
        refuse_no_list(place, given, "MathReward()")
    return [_as_reward(f"{place}[{number}]", each) for number, each in enumerate(given)]


def _as_reward(place: str, given: object) -> Reward:
    if isinstance(given, str):
        raise InputError(f"{place} is {shown(given)}; write FunctionReward({given!r})")
    if callable(given) and not isinstance(given, Reward | type):
        return FunctionReward(given)
    if not isinstance(given, Reward | type):
        raise InputError(f"{place} is {shown(given)}; write a Reward, as MathReward(), or a function")
    require_part(place, given, Reward)
    return cast("Reward", given)


def _in_messages(prompt: Prompt) -> bool:
    """Whether a row is one of TRL's conversational data, whose column `prompt` is a list of messages."""
    given = prompt.columns.get("prompt")
    return (
        isinstance(given, list) and bool(given) and all(isinstance(each, Mapping) and "role" in each for each in given)
    )


def _row(prompt: Prompt) -> Mapping[str, Any]:
    """A data row as a function may ask for it: its own columns, read when asked for, else what is known by usual names."""
    known: dict[str, Any] = {
        "answer": prompt.answer,
        "solution": prompt.answer,
        "ground_truth": prompt.answer,
        "source": prompt.source,
        "data_source": prompt.source,
        "topic": prompt.topic,
        **prompt.labels,
    }
    return ChainMap(cast("dict[str, Any]", prompt.columns), known)
