"""Shapes and types are checked at run time in the pure modules; this must run before any of them is imported."""

import hypothesis
import jaxtyping

jaxtyping.install_import_hook(
    [
        f"saerl_lightning.{name}"
        for name in (
            "records",
            "plan",
            "data.ordering",
            "signals.activations",
            "signals.codes",
            "signals.forward",
            "signals.pooling",
            "signals.tree_attention",
            "signals.trie",
            "objective.advantage",
            "objective.surrogate",
            "objective.aggregation",
            "policy.head",
            "policy.logprobs",
            "policy.prefix",
            "policy.prefix_attention",
            "policy.scoring",
            "evaluation.estimators",
        )
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # an int will do where a float is asked for
)

hypothesis.settings.register_profile("suite", deadline=None)  # a shared machine stalls now and then
hypothesis.settings.load_profile("suite")
