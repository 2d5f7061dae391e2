"""DomainMix: serves domains of prompts next in the proportions that a mixer sets. D domains, P prompts of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from saerl_lightning.data.callback import Online, applied
from saerl_lightning.data.revision import revised
from saerl_lightning.errors import InputError
from saerl_lightning.objective.advantage import group_advantages
from saerl_lightning.online.domains import ClusterDomains, Division, Domains
from saerl_lightning.online.history import Groups, Prediction
from saerl_lightning.online.mixers.mixer import DomainResults, Mixer, dealt_places
from saerl_lightning.online.operation import Learner
from saerl_lightning.online.rules.rule import Arrangement
from saerl_lightning.plan import SamplePlan
from saerl_lightning.ranges import require_in_range
from saerl_lightning.records import Outcomes, Prompt

if TYPE_CHECKING:
    from saerl_lightning.signals.source import Features

CLUSTERS = ClusterDomains()


class DomainMix(Learner):
    """Serves domains of prompts in proportions that follow what was measured of them while training runs.

    Each batch's places are dealt to the domains by largest remainder. What rounding takes from a domain it is owed in the
    next batch, up to one place. A domain that is used up gives its places to the others. Inside a domain the order of the
    plan stays, or is that of `within`; with `repeats`, prompts that were served less often in this epoch come first,
    unless `within` repeats by itself. Nothing is drawn at random.

    Args:
        mixer: Proportions of the domains, by what was measured of each.
        domains: Division of the pool into domains.
        repeats: Whether a prompt may be served again before the epoch ends, so that proportions can be kept until then.
        within: Operation of `data.online` that orders the prompts inside each domain, such as Selection or one of your own;
            null keeps the plan's order. What it lets wait comes last in its domain, and what it excludes leaves the run.

    Raises:
        InputError: if a part is of another kind.
    """

    def __init__(
        self, mixer: Mixer, domains: Domains = CLUSTERS, repeats: bool = False, within: Online | None = None
    ) -> None:
        super().__init__(repeats)
        self.mixer = mixer
        self.domains = domains
        self.within = within
        self._division = Division((), np.zeros(0, dtype=np.int64))
        self._results = DomainResults.none((), np.zeros(0, dtype=np.int64), 1)
        self._owed = np.zeros(0)  # (D,) places that rounding has taken from each domain, from -1 to 1
        self._advantage = np.zeros(0)  # (N,) mean |advantage| of each group of the latest step
        require_in_range(self, repeats=repeats)

    @property
    def repeats(self) -> bool:
        """Whether a prompt may be served again before the epoch ends."""
        return self._repeats or self._chosen_again

    @property
    def _chosen_again(self) -> bool:
        return self.within is not None and self.within.repeats

    @property
    def needs_features(self) -> bool:
        """Whether the order inside a domain reads feature rows."""
        return self.within is not None and self.within.needs_features

    def check(self, prompts: Sequence[Prompt], planned: Int[np.ndarray, " K"]) -> None:
        """Refuses what the domains, or the operation inside them, refuse."""
        self.domains.check(prompts)
        if self.within is not None:
            self.within.group_size = self.group_size
            self.within.check(prompts, planned)

    def apply(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> SamplePlan:
        """Begins with what is known before training, also inside the domains."""
        if self.within is not None:
            self.within.group_size = self.group_size
            if isinstance(self.within, Learner):
                self.within.orders_all = True
            plan = applied(self.within, plan, prompts, features)
        return super().apply(plan, prompts, features)

    def begin(self, plan: SamplePlan, prompts: Sequence[Prompt], features: Features | None) -> None:
        """Divides the pool.

        Raises:
            InputError: if the mixer can't mix these domains.
        """
        self._division = self.domains.divide(plan, prompts)
        names = self._division.names
        self.mixer.check(names)
        sizes = np.bincount(self._division.domain[plan.rows], minlength=len(names))
        self._results = DomainResults.none(names, sizes, self.mixer.kept)
        self._owed, self._advantage = np.zeros(len(names)), np.zeros(len(plan.cluster))
        self._idle = "" if len(names) > 1 or self.within is not None else "all prompts are in one domain"

    def observe(self, outcomes: Outcomes) -> None:
        """Learns from the graded groups of a step."""
        graded = outcomes.rewards.isfinite()
        size = group_advantages(outcomes.rewards).abs().sum(1) / graded.sum(1).clamp(min=1)  # (P,)
        self._advantage[[self._row[uid] for uid in outcomes.uids]] = size.double().numpy()
        super().observe(outcomes)  # compares with what was predicted before the step, so it comes first
        if self.within is not None:
            self.within.observe(outcomes)

    @property
    def predicts(self) -> bool:
        """Whether the operation inside the domains predicts."""
        return isinstance(self.within, Learner) and self.within.predicts

    def predict(self, rows: Int[np.ndarray, " n"]) -> Prediction | None:
        """Predicts prompts as the operation inside the domains does."""
        return self.within.predict(rows) if isinstance(self.within, Learner) else None

    def revise(self, plan: SamplePlan, served: int) -> SamplePlan:
        """Has the order inside the domains decided, then deals the places to the domains."""
        if self.within is None:
            return super().revise(plan, served)
        made = super().revise(revised(self.within, plan, served), served)
        if isinstance(self.within, Learner):
            self.waits_as(self.within)
        return made

    def learn(self, groups: Groups) -> None:
        """Adds a step's results, and notes what rounding took from each domain."""
        domain = self._division.domain[groups.rows]
        served = np.bincount(domain, minlength=len(self._owed))
        self._owed = np.clip(self._owed + self.shares() * len(domain) - served, -1, 1)
        self._results = self._results.after(domain, groups.right / groups.graded, self._advantage[groups.rows])
        named = zip(self._division.names, served / len(domain), strict=True)
        self._report = {**self._report, **{f"served/{name}": float(share) for name, share in named}}

    def shares(self) -> Float[np.ndarray, " D"]:
        """Returns the proportions in which domains are served next."""
        return self.mixer.shares(self._results)

    def arrange(self, plan: SamplePlan, rest: Int[np.ndarray, " n"], random: np.random.Generator) -> Arrangement:
        """Puts a batch of the mixer's proportions first, and further prompts in the same proportions behind it."""
        domain, shares = self._division.domain[rest], self.shares()
        handed_out = plan.rows[:0] if self._chosen_again else plan.rows[: len(plan.rows) - len(rest)]
        place = places_within(domain, np.bincount(handed_out, minlength=len(plan.cluster))[rest])
        left = np.bincount(domain, minlength=len(shares))
        dealt = dealt_places(shares, self._owed, left, min(plan.batch_size, len(rest)))[domain]
        turn = np.where(place < dealt, -1.0, (place - dealt + 0.5) / np.maximum(shares[domain], 1e-12))
        return Arrangement(np.argsort(turn, kind="stable"))

    def metrics(self) -> dict[str, float]:
        """Returns the proportions asked for next, and what was served in the latest step."""
        asked = zip(self._division.names, self.shares().tolist(), strict=True)
        inside = {} if self.within is None else self.within.metrics()
        return {**inside, **self._report, **{f"share/{name}": share for name, share in asked}}

    def state_dict(self) -> dict[str, Any]:
        """Returns what was measured of the domains."""
        results = {name: getattr(self._results, name) for name in ("groups", "pass_rate", "advantage")}
        arrays = {name: torch.from_numpy(values.copy()) for name, values in results.items()}
        owed = torch.from_numpy(self._owed.copy())
        mixed = {"results": arrays, "mixed": self._results.steps, "owed": owed}
        inside = {} if self.within is None else {"within_state": self.within.state_dict()}
        return super().state_dict() | self._kinds() | mixed | inside

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what was measured.

        Raises:
            InputError: if the checkpoint was made with another mixer, with other domains, or another order inside them.
        """
        for part, now in self._kinds().items():
            if (before := state.get(part)) != now:
                raise InputError(
                    f"data.online has {part} {now}, and the checkpoint was made with {before}; write the same as then, or "
                    "start a new run without --ckpt_path"
                )
        super().load_state_dict(state)
        arrays = {name: values.numpy().copy() for name, values in state["results"].items()}
        self._results = replace(self._results, **arrays, steps=state["mixed"])
        self._owed = state["owed"].numpy().copy()
        if self.within is not None:
            self.within.load_state_dict(state["within_state"])

    def _kinds(self) -> dict[str, Any]:
        return {
            "mixer": type(self.mixer).__name__,
            "window": self.mixer.kept,
            "domains": ", ".join(self._division.names),
            "within": None if self.within is None else type(self.within).__name__,
        }


def places_within(group: Int[np.ndarray, " n"], times: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Numbers the members of each group from 0: those with the fewest `times` first, then in their own order."""
    order = np.lexsort((np.arange(len(group)), times, group))
    starts = np.searchsorted(group[order], group[order])
    place = np.empty(len(group), dtype=np.int64)
    place[order] = np.arange(len(group)) - starts
    return place
