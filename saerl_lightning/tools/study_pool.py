"""What a study may not measure on: questions that its arms train on. The sources are read, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentParser

from saerl_lightning.data.pool import read_prompts
from saerl_lightning.data.validation import ValidationSet
from saerl_lightning.errors import InputError
from saerl_lightning.prompts.source import PromptSource

Given = str | ValidationSet | PromptSource


def refuse_trained_questions(resolved: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a study whose sets ask what an arm is trained on; sets with `keep_trained` say that they do.

    Sources that a stage is still to make (`{shared}/…`) are left to the runs, which drop such questions.

    Args:
        resolved: each arm's configuration.

    Raises:
        InputError: naming the first set, the count, and a question; or that a source can't be read.
    """
    checked: set[str] = set()
    for arm, config in resolved.items():
        given = {name: config["data"]["init_args"].get(name) for name in ("train", "val", "test")}
        text = json.dumps(given, sort_keys=True)
        if text not in checked and "{shared}" not in text:
            _refuse(arm, given)
        checked.add(text)


def _refuse(arm: str, given: Mapping[str, Any]) -> None:
    trained = {prompt.normalised_text for prompt in read_prompts(_made(str | PromptSource, given["train"]))}
    for kind in ("val", "test"):
        for name, one in (given[kind] or {}).items():
            asked: Given = _made(Given, one)
            wanted = asked if isinstance(asked, ValidationSet) else ValidationSet(asked)
            prompts = [] if wanted.keep_trained else read_prompts(wanted.source)[: wanted.limit]
            if shared := [prompt for prompt in prompts if prompt.normalised_text in trained]:
                raise InputError(
                    f"data.{kind}.{name} asks {len(shared)} of its {len(prompts)} questions that the arm '{arm}' trains on "
                    f"(first: '{shared[0].uid}'); take them out of data.train or of the set (ReasoningGymPrompts.part keeps "
                    "generated sets apart)"
                )


def _made(kind: Any, given: Any) -> Any:
    parser = ArgumentParser()
    parser.add_argument("--made", type=kind)
    return parser.instantiate(parser.parse_object({"made": given})).made
