"""The demo's policy by itself: `-m saerl_lightning.tools.tiny_policy FOLDER`, for studies that share a cold start.

Random weights and a tokenizer whose merges come from the demo's training prompts.
"""

from __future__ import annotations

from jsonargparse import auto_cli

from saerl_lightning.policy.tiny import build_tiny_policy
from saerl_lightning.prompts.reasoning_gym import ReasoningGymPrompts
from saerl_lightning.ranges import Seed, require_arguments
from saerl_lightning.records import Prompt
from saerl_lightning.text_files import read_mapping

TASKS = "configs/demo/tasks.yaml"


def tiny_policy(folder: str, seed: Seed = 0, tasks: str = TASKS) -> None:
    """Writes the demo's random policy of about a million weights.

    Args:
        folder: where it goes; missing or empty.
        seed: of the weights.
        tasks: config whose training prompts the tokenizer learns from.
    """
    require_arguments(tiny_policy, locals())
    build_tiny_policy(folder, [f"{each.text} {each.answer}" for each in prompts_of(tasks, "train")], seed=seed)


def prompts_of(tasks: str, *path: str) -> list[Prompt]:
    """The prompts of one of the sets of a config, as it draws them; "val", "demo" leads to `data.val.demo`."""
    source = read_mapping(tasks, "the config of the tasks")["data"]["init_args"]
    for key in path:
        source = source[key]
    return ReasoningGymPrompts(**source["init_args"]).load()


if __name__ == "__main__":
    auto_cli(tiny_policy, as_positional=True)
