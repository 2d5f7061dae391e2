"""Prompts of two topics, for the tests of the drift benchmark."""

from saerl_lightning.records import Prompt


def prompts_of(texts) -> list[Prompt]:
    topics = ("sums", "words")
    return [Prompt.asking(f"p{i}", text, "", topic=topics[i % 2]) for i, text in enumerate(texts)]
