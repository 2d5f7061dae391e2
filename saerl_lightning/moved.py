"""Old and new paths of modules, and old and new forms of settings, so that `config.yaml` files of 0.1 stay readable."""

from __future__ import annotations

import re
from typing import Any

MOVED = {
    "data.clustering_controls": "data.clustering",
    "data.curriculum_ablation": "data.curriculum",
    "data.curriculum_controls": "data.curriculum",
    "data.filtering_controls": "data.filtering",
    "data.pool": "data.serving",
    "data.probe": "data.probe_fits",
    "data.sampler": "data.serving",
    "objective.clipped": "objective.policy_gradient",
    "policy.checkpoint": "policy.weights",
    "prompts.reference": "prompts.source",
    "prompts.rows": "prompts.file",
    "reward.math": "reward.math_reward",
    "reward.total": "reward.reward",
    "rollout.cache": "rollout.policy_decoder",
    "rollout.fused_decoder": "rollout.fused.decoder",
    "rollout.fused_weights": "rollout.fused.weights",
    "rollout.group_cache": "rollout.fused.decoder",
    "signals.forward": "signals.reading",
    "signals.noise": "signals.random_signals",
    "signals.shards": "signals.cache",
    "signals.tree_attention": "signals.prefix_tree",
    "signals.trie": "signals.prefix_tree",
    "training.activations": "sae.activations",
    "training.checkpoint": "training.checkpoints",
    "training.checkpoint_io": "training.checkpoints",
    "training.dynamic_sampling": "training.rounds.dynamic_sampling",
    "training.completions": "training.tables.completion_table",
    "training.logged_names": "training.loggers",
    "training.distributed": "training.metrics",
    "training.phases": "training.metrics",
    "training.plan_table": "training.tables.plan_table",
    "training.policy": "training.policy_module",
    "training.predictions": "training.callbacks",
    "training.progress": "training.callbacks",
    "training.question_table": "training.tables.question_table",
    "training.reference": "training.grading",
    "training.report": "training.metrics",
    "training.sae": "sae.module",
    "training.sae_architecture": "sae.architecture",
    "training.sae_blocks": "sae.activations",
    "training.sae_cache": "sae.harvest",
    "training.sae_evaluation": "sae.metrics",
    "training.sae_harvest": "sae.harvest",
    "training.sae_metrics": "sae.metrics",
    "training.sampled": "training.grading",
    "training.step": "training.rows",
    "training.stop_signals": "training.callbacks",
    "training.token_budget": "training.callbacks",
    "training.validate_at_start": "training.callbacks",
}
PATH = re.compile(r"\bsaerl_lightning\.([a-z_]+\.[a-z_0-9]+)(?=\.[A-Z])")


def at_new_paths(text: str) -> str:
    """Replaces old dotted paths of classes by new ones, in the text of a configuration or a flag."""
    return PATH.sub(lambda found: f"saerl_lightning.{MOVED.get(found[1], found[1])}", text)


# In version 0.1 each of these was a switch of its own, on if it was not named.
SHORTCUTS = (
    "shared_prefix",
    "lean_layers",
    "tiled_head",
    "skip_zero_advantage",
    "reuse_forward",
    "sort_by_length",
    "overlap_grading",
)
SWITCH = re.compile(rf"--(?:model\.)?(?:init_args\.)?shortcuts\.({'|'.join(SHORTCUTS)})\b")


def in_new_forms(config: Any) -> Any:
    """Replaces version 0.1's switches of shortcuts, at any depth of a configuration, by the names that are on."""
    if isinstance(config, list):
        return [in_new_forms(each) for each in config]
    if not isinstance(config, dict):
        return config
    return {key: _shortcuts(value) if key == "shortcuts" else in_new_forms(value) for key, value in config.items()}


def _shortcuts(value: Any) -> Any:
    if not isinstance(value, dict) or not value or not all(each in SHORTCUTS for each in value):
        return value
    on = [name for name in SHORTCUTS if value.get(name, True) is True]
    return "all" if len(on) == len(SHORTCUTS) else on or "none"


def old_flag(word: str) -> str | None:
    """What to write instead of a flag that version 0.1 had; None for any other word of a command line."""
    if (found := SWITCH.match(word)) is None:
        return None
    others = ", ".join(name for name in SHORTCUTS if name != found[1])
    return f"{found[0]} was a switch of version 0.1; list the shortcuts to keep, as in --model.shortcuts '[{others}]'"
