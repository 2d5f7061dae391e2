"""Selection: serves next what a rule chooses by what is believed of the pass rates. N prompts in the pool, n left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from saerl_lightning.errors import InputError
from saerl_lightning.online.beliefs.belief import Belief, mean_and_sd
from saerl_lightning.online.history import Groups, Prediction
from saerl_lightning.online.operation import Learner
from saerl_lightning.online.rules.rule import Arrangement, Candidates, Rule
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import Seed, require_in_range
from saerl_lightning.records import Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features


class Selection(Learner):
    """Learns every prompt's pass rate while training runs, and serves next what a rule chooses.

    Prompts that a rule refuses wait behind the others. They are served when nothing else is left, and are dropped only
    if exclusion is the rule. Before the first step, and for prompts never served, the belief is its prior.

    Args:
        belief: What is believed of every prompt's pass rate, and how it learns from graded groups.
        rule: Which of the prompts that are left are served next.
        repeats: Whether a prompt may be served again before the epoch ends, so that the whole pool can be chosen from.
        seed: Seed of the rule's random draws.

    Raises:
        InputError: if the seed is out of range, or a part is of another kind.
    """

    def __init__(self, belief: Belief, rule: Rule, repeats: bool = False, seed: Seed = 0) -> None:
        super().__init__(repeats, seed)
        self.belief = belief
        self.rule = rule
        require_in_range(self, repeats=repeats)

    @property
    def needs_features(self) -> bool:
        """Whether the belief reads feature rows."""
        return self.belief.needs_features

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses what the belief or the rule refuses."""
        self.rule.check(self.group_size)
        self.belief.check(prompts, planned)

    def begin(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Sets every prompt to the belief's prior."""
        self.belief.begin(prompts, features)

    def learn(self, groups: Groups) -> None:
        """Learns from a step's groups."""
        self.belief.learn(groups.rows, groups.right, groups.graded)

    @property
    def predicts(self) -> bool:
        """True."""
        return True

    def predict(self, rows: Int[np.ndarray, " n"]) -> Prediction:
        """Predicts prompts by the belief."""
        a, b, chance = self.belief.believe(rows, self.group_size)
        return *mean_and_sd(a, b), chance

    def arrange(self, plan: SamplePlan, rest: Int[np.ndarray, " n"], random: np.random.Generator) -> Arrangement:
        """Arranges the prompts that are left by the rule."""
        a, b, chance = self.belief.believe(rest, self.group_size)
        candidates = Candidates(
            rows=rest,
            a=a,
            b=b,
            varies=chance,
            seen=self.history.groups[rest],
            cluster=plan.cluster[rest],
            batch_size=self.count(plan, rest),
        )
        return self.rule.arrange(candidates, random)

    def metrics(self) -> dict[str, float]:
        """Returns how well the latest step was predicted, and the belief's own numbers."""
        return {**self._report, **self.belief.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """Returns what was learned and served so far."""
        kinds = {"belief": type(self.belief).__name__, "rule": type(self.rule).__name__}
        return super().state_dict() | kinds | {"belief_state": self.belief.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what was learned and served.

        Raises:
            InputError: if the checkpoint was made with another belief or rule.
        """
        for part, now in (("belief", type(self.belief).__name__), ("rule", type(self.rule).__name__)):
            if state.get(part) != now:
                raise InputError(
                    f"data.online.{part} is {now}, and the checkpoint was made with {state.get(part)}; write "
                    f"--data.online.{part} {state.get(part)}, or start a new run without --ckpt_path"
                )
        super().load_state_dict(state)
        self.belief.load_state_dict(state["belief_state"])
