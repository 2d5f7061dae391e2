"""`show`: one prompt as the model sees it, and an answer to it as the rewards see and grade it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import lightning
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from saerl_lightning.data.module import PromptDataModule
from saerl_lightning.data.prompt_pool import PromptPool
from saerl_lightning.errors import InputError, did_you_mean
from saerl_lightning.records import Message, Rollouts
from saerl_lightning.reward.reward import Reward, grade
from saerl_lightning.rollout.completion import Reader, decode, pack_rollouts
from saerl_lightning.training.grpo import GRPOModule
from saerl_lightning.training.policy_module import PolicyModule
from saerl_lightning.verbs.label import require_policy
from saerl_lightning.verbs.measuring import answering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "template": "dim"}


def show(
    model: PolicyModule,
    datamodule: PromptDataModule,
    trainer: lightning.Trainer,
    prompt: str | None,
    completion: str | None,
    tokens: bool,
    sample: bool,
) -> None:
    """Prints a training prompt with its roles coloured, and an answer as text with every reward's grade.

    Args:
        model: The run's module.
        datamodule: The run's training prompts.
        trainer: Trainer, for the device and the precision of a sampled answer.
        prompt: Id of the prompt; null takes the first one.
        completion: Answer that is graded; null takes the right answer in a box.
        tokens: Whether to print every token with its id and its role.
        sample: Whether the policy samples the answer, as in training.

    Raises:
        InputError: if the modules are not those of a policy's run, no prompt has the id, or an answer is both given and
            to be sampled.
    """
    require_policy(model, datamodule)
    if sample and completion is not None:
        raise InputError("--sample true and --completion are two answers; leave one of them out")
    for reward in model.rewards:
        reward.check()
    datamodule.tokenizer = model.tokenizer
    pool = datamodule.pool
    row = _row(pool, prompt)
    for reward in model.rewards:
        reward.require(pool.prompts)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    _print_prompt(console, pool, row, datamodule.chat.messages(pool.prompts[row]), model.tokenizer, tokens)
    if sample:
        rollouts = _sampled(model, datamodule, trainer, pool, row)
    else:
        text = f"\\boxed{{{pool.prompts[row].answer}}}" if completion is None else completion
        rollouts = _written(text, pool, row, model.tokenizer)
    _print_grades(console, model.rewards, pool, row, rollouts, "sampled" if sample else "given")


def roles(text: str, messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Cuts a rendered chat into pieces, each with its role; what the template wrote has the role "template".

    What stands behind the last message's content and the template's last role mark is the template's too, or a prefill.
    A message that the template changed (a cut, a trim) keeps the role "template".
    """
    pieces: list[tuple[str, str]] = []
    rest = text
    for message in messages:
        before, found, after = rest.partition(message["content"].strip())
        if found:
            pieces += [("template", before), (message["role"], found)]
            rest = after
    return [(role, piece) for role, piece in [*pieces, ("template", rest)] if piece]


def _row(pool: PromptPool, uid: str | None) -> int:
    if uid is None:
        return 0
    uids = [prompt.uid for prompt in pool.prompts]
    if uid not in uids:
        raise InputError(
            f"--prompt '{uid}' is the id of no training prompt{did_you_mean(uid, uids)}; the first is '{uids[0]}'"
        )
    return uids.index(uid)


def _print_prompt(
    console: Console,
    pool: PromptPool,
    row: int,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    tokens: bool,
) -> None:
    prompt, ids = pool.prompts[row], pool.ids[row]
    pieces = roles(decode(tokenizer, [ids])[0], messages)
    too_long = f"; it is dropped: {pool.too_long[row]}" if row in pool.too_long else ""
    console.print(f"prompt '{prompt.uid}', {len(ids)} tokens{too_long}", style="bold")
    console.print(Text.assemble(*((piece, STYLES.get(role, "")) for role, piece in pieces)), soft_wrap=True)
    if tokens:
        console.print(_token_table(ids, pieces, tokenizer))
    known = {"answer": prompt.answer, "source": prompt.source, "topic": prompt.topic or "", **prompt.labels}
    console.print(", ".join(f"{name} {value}" for name, value in known.items() if value != ""), markup=False)


def _token_table(
    ids: Sequence[int], pieces: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> RichTable:
    """One row a token; a token that two roles share has the role of its first character."""
    role_of = [role for role, piece in pieces for _ in piece]
    table = RichTable("place", "id", "token", "role", box=None, pad_edge=False)
    at = 0
    for place in range(len(ids)):
        # Single tokens can be parts of a character: the text up to a place, and its growth, are always whole.
        upto = len(decode(tokenizer, [list(ids[: place + 1])])[0])
        role = role_of[min(at, len(role_of) - 1)] if role_of else "template"
        said = decode(tokenizer, [[ids[place]]])[0]
        table.add_row(str(place), str(ids[place]), Text(repr(said), STYLES.get(role, "")), role)
        at = upto
    return table


def _written(text: str, pool: PromptPool, row: int, tokenizer: PreTrainedTokenizerBase) -> Rollouts:
    """A given answer as if the policy had written it and ended it."""
    end = tokenizer.eos_token_id
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    completion = [*ids, *([end] if isinstance(end, int) else [])]  # type: ignore[misc]
    reader = Reader(tokenizer, [end] if isinstance(end, int) else [])
    return pack_rollouts(reader, [pool.ids[row]], [completion], [[0.0] * len(completion)], [False], 0)


def _sampled(
    model: PolicyModule, datamodule: PromptDataModule, trainer: lightning.Trainer, pool: PromptPool, row: int
) -> Rollouts:
    drawn = model.sampling if isinstance(model, GRPOModule) else datamodule.val_sampling
    with answering(model, trainer, datamodule.chat.max_prompt_tokens, drawn.max_tokens):
        return model.engine.generate([pool.ids[row]], replace(drawn, group_size=1))


def _print_grades(
    console: Console, rewards: Sequence[Reward], pool: PromptPool, row: int, rollouts: Rollouts, how: str
) -> None:
    length = int(rollouts.completion_lengths[0])
    cut = ", cut at max_tokens" if bool(rollouts.truncated[0]) else ""
    console.print(f"answer ({how}, {length} tokens{cut}), as the rewards see it", style="bold")
    console.print(Text(rollouts.texts[0], STYLES["assistant"]), soft_wrap=True)
    try:
        for name, scores in grade(rewards, [pool.prompts[row]], rollouts).items():
            score = float(scores[0, 0])
            console.print(f"reward {name}: {'not graded' if score != score else f'{score:g}'}", markup=False)
    finally:
        for reward in rewards:
            reward.close()
