"""Scores single replies by the rewards of a verifiers environment, for grader processes: no torch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from saerl_lightning.prompts.environment import Environment

if TYPE_CHECKING:
    from verifiers.v1 import Task, Trace


@dataclass(frozen=True)
class Played:
    """A task that was played by one reply.

    Args:
        row: Data of the task, as values of JSON.
        text: Text of the reply.
        truncated: Whether its length was the end of it.
        prompt_tokens: Number of tokens of the prompt.
        tokens: Number of tokens of the reply.
    """

    row: Mapping[str, Any]
    text: str
    truncated: bool
    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class Scored:
    """What the rewards gave a reply.

    Args:
        total: Sum of the rewards times their weights; NaN if one failed.
        parts: Score of each reward before its weight, and each metric, by name.
        failure: What failed, and where; "" for nothing.
    """

    total: float = math.nan
    parts: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


@cache
def _environment(name: str, arguments: str) -> Environment:
    import json

    return Environment.load(name, json.loads(arguments))


def prepare(name: str, arguments: str) -> None:
    """Loads the environment, before the first reply.

    Args:
        name: Id or file of the environment.
        arguments: Fields of its configuration, as JSON.
    """
    _environment(name, arguments)


def score(name: str, arguments: str, replies: Sequence[Played], deadline_s: float) -> list[Scored]:
    """Scores replies side by side.

    Args:
        name: Id or file of the environment.
        arguments: Fields of its configuration, as JSON.
        replies: Replies to tasks of the environment.
        deadline_s: Seconds after which a reply is given up.
    """
    environment = _environment(name, arguments)

    async def side_by_side() -> list[Scored]:
        return list(await asyncio.gather(*(_scored(environment, reply, deadline_s) for reply in replies)))

    return asyncio.run(side_by_side())


async def _scored(environment: Environment, reply: Played, deadline_s: float) -> Scored:
    try:
        task = environment.task(reply.row)
        trace = trace_of(task, reply)
        async with asyncio.timeout(deadline_s):
            await task.score(trace)
    except TimeoutError:
        return Scored(failure=f"ran past its deadline of {deadline_s:g} s")
    except Exception as error:  # the environment's own code runs here
        return Scored(failure=f"raised {error.__cause__ or error!r}"[:300])
    rewards = {name: each.score if each else math.nan for name, each in trace.rewards.items()}
    metrics = {name: math.nan if each is None else each for name, each in trace.metrics.items()}
    lost = [name for name, each in rewards.items() if math.isnan(each)]
    total = math.nan if lost else trace.reward
    return Scored(total, {**metrics, **rewards}, f"gave NaN as the reward {lost[0]!r}" if lost else "")


def trace_of(task: Task, reply: Played) -> Trace:
    """Returns the trace that verifiers writes of a task which is played by one reply.

    Args:
        task: Task that was played.
        reply: What the policy said.
    """
    import verifiers.v1 as vf
    from verifiers.v1.state import state_cls

    asked: list[Any] = [] if task.data.system_prompt is None else [vf.SystemMessage(content=task.data.system_prompt)]
    prompt = task.data.prompt
    asked += [vf.UserMessage(content=prompt)] if isinstance(prompt, str) else list(prompt or [])
    said = vf.AssistantMessage(content=reply.text)
    messages = [(message, False) for message in asked] + [(said, True)]
    nodes = [
        vf.MessageNode(parent=place - 1 if place else None, message=message, sampled=sampled)
        for place, (message, sampled) in enumerate(messages)
    ]
    usage = vf.Usage(prompt_tokens=reply.prompt_tokens, completion_tokens=reply.tokens)
    call = vf.ModelCall(node=len(asked), finish_reason="length" if reply.truncated else "stop", usage=usage)
    record = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    trace = vf.Trace(task=record, state=state_cls(type(task))(), agent=vf.AgentInfo(config=vf.AgentConfig()))
    trace.nodes, trace.calls, trace.ok = nodes, [call], True
    trace.stop("agent_completed")
    return trace
