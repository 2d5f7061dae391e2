"""DomainMix: what is served follows the mixer, each prompt once, and a resumed run goes on to the last bit."""

import numpy as np
import pytest
import torch

from saerl_lightning.data.callback import Online
from saerl_lightning.data.clustering import TopicClusters
from saerl_lightning.data.planning import make_plan
from saerl_lightning.data.revision import revise
from saerl_lightning.errors import InputError
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.domain_mix import DomainMix, places_within
from saerl_lightning.online.domains import LabelDomains, RandomDomains
from saerl_lightning.online.mixers.dads import DADS
from saerl_lightning.online.mixers.dump import DUMP
from saerl_lightning.online.mixers.reward_gap import RewardGap
from saerl_lightning.online.mixers.static_weights import StaticWeights
from saerl_lightning.online.mixers.tscl import TSCL
from saerl_lightning.online.rules.admit import Admit
from saerl_lightning.online.rules.exclude_solved import ExcludeSolved
from saerl_lightning.online.rules.nearest import Nearest
from saerl_lightning.online.selection import Selection
from saerl_lightning.records import Outcomes, Prompt
from tests.data.served_prompts import Recorder, Refilling, SaveEverywhere, a_quiet_trainer, fit, make, outcomes, trainer

__all__ = ["a_quiet_trainer"]

MIXERS = {
    "StaticWeights": lambda: StaticWeights({"a": 1, "b": 2}),
    "RewardGap": lambda: RewardGap(temperature=0.2, warmup=2, window=3),
    "DUMP": lambda: DUMP(warmup=1),
    "TSCL": lambda: TSCL(warmup=1, window=4),
    "DADS": DADS,
}


class Graded(Recorder):
    """Topic a is right two times of three, topic b one time of five; the first is later the harder one."""

    def rewards(self, rows):
        step = self.trainer.global_step
        often, seldom = (lambda row: (row * 7 + step) % 3 > 0), (lambda row: (row + step) % 5 == 0)
        right = torch.tensor([(often if row % 2 == step // 6 % 2 else seldom)(row) for row in rows])
        return torch.stack([right.float(), torch.zeros(len(rows))], 1)


class RefillingGraded(Refilling, Graded):
    """Takes further prompts into its steps."""


def operation(name: str = "DADS", **arguments) -> DomainMix:
    return DomainMix(MIXERS[name](), **{"domains": LabelDomains("topic")} | arguments)


def of_topic(batch: list[int]) -> int:
    """Number of prompts of the topic b."""
    return sum(row % 2 for row in batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("module", [Graded, RefillingGraded])
@pytest.mark.parametrize("repeats", [False, True])
def test_resuming_anywhere_serves_the_same(tmp_path, name, module, repeats):
    assert_same_when_resumed(tmp_path, module, lambda: operation(name, repeats=repeats))


@pytest.mark.slow
@pytest.mark.parametrize("module", [Graded, RefillingGraded])
@pytest.mark.parametrize("repeats", [False, True])
def test_resuming_a_selection_inside_domains_serves_the_same(tmp_path, module, repeats):
    def mixed() -> DomainMix:
        return operation("DADS", within=Selection(PromptBeta(), Nearest(), repeats=repeats))

    assert_same_when_resumed(tmp_path, module, mixed)


def assert_same_when_resumed(tmp_path, module, online) -> None:
    def run(ckpt_path=None, **more):
        made = module()
        trainer(max_epochs=2, **more).fit(made, datamodule=make(25, online=online(), mixing=None), ckpt_path=ckpt_path)
        return made

    whole = run(callbacks=[SaveEverywhere(tmp_path)])
    for checkpoint in sorted(tmp_path.iterdir()):
        resumed = run(checkpoint)
        assert resumed.served == whole.served[int(checkpoint.stem.split("-")[0]) :], checkpoint.name
        assert resumed.weight.item() == whole.weight.item()


@pytest.mark.parametrize("name", MIXERS)
def test_every_prompt_is_served_once_an_epoch_and_the_plan_is_another(name):
    plain = fit(make(40, mixing=None), max_epochs=2).served
    mixed = fit_graded(make(40, online=operation(name), mixing=None), max_epochs=2)
    assert mixed.served != plain
    for epoch in (mixed.served[:10], mixed.served[10:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(40))


def fit_graded(data, **arguments) -> Graded:
    module = Graded()
    trainer(**arguments).fit(module, datamodule=data)
    return module


def test_fixed_weights_are_kept_over_batches_that_are_too_small_for_them():
    """A third of 4 places is 1.33: the batches have 3, 3, 2, 3, 3, 2, … of topic b, while it lasts."""
    served = fit_graded(
        make(60, online=operation("StaticWeights"), clustering=None, curriculum=None, mixing=None)
    ).served
    counts = np.cumsum([of_topic(batch) for batch in served[:9]])
    assert np.abs(counts - 8 / 3 * np.arange(1, 10)).max() < 1
    assert sum(of_topic(batch) for batch in served) == 30


def test_the_order_inside_a_domain_is_the_plans():
    data = make(40, online=operation("DADS"), mixing=None)
    served = [row for batch in fit_graded(data).served for row in batch]
    planned = data.plan.rows.tolist()
    for topic in (0, 1):
        assert [row for row in served if row % 2 == topic] == [row for row in planned if row % 2 == topic]


def test_a_weak_domain_is_served_more_and_a_random_one_of_its_size_is_not():
    """DADS with rates of 1 and 0: (1.1, e^4 + .1) / (e^4 + 1.2): 1.97 and 98.03 percent."""
    prompts = [Prompt.asking(f"p{i}", f"{i}", topic="ab"[i % 2]) for i in range(200)]

    def share_of_b(domains) -> float:
        online = DomainMix(DADS(), domains)
        plan = make_plan(prompts, {}, 10, None, None, {"online": online})
        handed_out = plan.rows[:0]
        for _ in range(6):
            rows = revise([online], plan, handed_out).rows[len(handed_out) :][:10]
            handed_out = np.concatenate([handed_out, rows])
            rewards = torch.tensor([[1.0 - row % 2] * 4 for row in rows])
            online.observe(outcomes([f"p{row}" for row in rows], rewards))
        named = online.metrics()
        assert named["share/a"] + named["share/b"] == pytest.approx(1)
        assert named["served/a"] + named["served/b"] == pytest.approx(1)
        return named["share/b"]

    assert share_of_b(LabelDomains()) == pytest.approx(0.9803, abs=1e-4)
    assert share_of_b(RandomDomains(LabelDomains())) < 0.8


def test_clusters_are_domains_too():
    data = make(40, online=DomainMix(StaticWeights({"0": 3, "1": 1})), clustering=TopicClusters(), mixing=None)
    assert [4 - of_topic(batch) for batch in fit_graded(data).served[:5]] == [3] * 5
    with pytest.raises(InputError, match=r"ClusterDomains needs clusters"):
        fit(make(40, online=DomainMix(DADS()), clustering=None, curriculum=None))


def test_repeats_serve_those_first_that_were_served_least():
    served = fit_graded(make(24, online=operation("StaticWeights", repeats=True), curriculum=None, mixing=None)).served
    rows = [row for batch in served for row in batch]
    b = [row for row in rows if row % 2]
    assert len(b) == 16 > 12 == len(set(b))
    assert len({row for row in rows if not row % 2}) == 8
    assert all(len(set(batch)) == 4 for batch in served)


def mixed_selection(rule, repeats: bool = False) -> tuple[DomainMix, list[Prompt]]:
    """Three places of four for topic a (even prompts), one for b, each in the order of a selection."""
    selection = Selection(PromptBeta(keep=1.0), rule, repeats=repeats)
    online = DomainMix(StaticWeights({"a": 3, "b": 1}), LabelDomains(), within=selection)
    return online, [Prompt.asking(f"p{i}", f"{i}", topic="ab"[i % 2]) for i in range(12)]


def right(counts: dict[str, int]) -> Outcomes:
    """Groups of eight with so many right answers."""
    return outcomes([*counts], torch.tensor([[1.0] * k + [0.0] * (8 - k) for k in counts.values()]))


def test_the_mix_decides_how_many_of_a_domain_and_the_selection_which():
    """Target .9: 8, 8, 6 and 0 of 8 make .9, .9, .7 and .1; p6 with .5 is nearer than p4, of topic a though p3 is earlier."""
    online, prompts = mixed_selection(Nearest(0.9, thompson=False), repeats=True)
    plan = make_plan(prompts, {}, 4, None, None, {"online": online})
    online.observe(right({"p0": 8, "p1": 8, "p2": 6, "p4": 0}))
    rows = revise([online], plan, np.array([0, 1, 2, 4])).rows
    assert set(rows[4:8]) == {0, 2, 6, 1}  # without the mix: p0, p1, p2 and p3
    assert set(rows[4:8] % 2) == {0, 1} and (rows[4:8] % 2).sum() == 1
    assert online.within.metrics()["brier"] == online.metrics()["brier"] < 1  # predicted by the selection


def test_what_the_selection_lets_wait_or_excludes_does_so_in_its_domain():
    """0 of 8 makes Beta(1, 9), which varies with .47 < .6: p4 waits behind the others of a; rate .9 is excluded above .8."""
    online, prompts = mixed_selection(Admit(0.6))
    plan = make_plan(prompts, {}, 4, None, None, {"online": online})
    online.observe(right({"p4": 0}))
    revised = revise([online], plan, plan.rows[:0])
    assert [row for row in revised.rows.tolist() if row % 2 == 0] == [0, 2, 6, 8, 10, 4]
    online.observe(right({"p0": 4, "p2": 4, "p6": 4, "p1": 4}))
    assert online.metrics()["waiting"] == 1 and online.history.columns["waits"][4] == 1
    online, prompts = mixed_selection(ExcludeSolved(0.8))
    plan = make_plan(prompts, {}, 4, None, None, {"online": online})
    online.observe(right({"p4": 8, "p0": 0, "p2": 0, "p1": 0}))
    revised = revise([online], plan, plan.rows[:0])
    assert 4 in revised.dropped and sorted(revised.rows.tolist()) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


class Backwards(Online):
    """Serves the highest row first, but what has failed last; no Learner, with nothing but the contract's methods."""

    def apply(self, plan, prompts, features):
        self.failed: list[str] = []
        self.row = {prompt.uid: row for row, prompt in enumerate(prompts)}
        return plan

    def observe(self, outcomes):
        self.failed += [uid for uid, k in zip(outcomes.uids, outcomes.right.tolist(), strict=True) if not k]

    def revise(self, plan, served):
        rest, failed = plan.rows[served:], [self.row[uid] for uid in self.failed]
        return plan.go_on(served, rest[np.lexsort((-rest, np.isin(rest, failed)))])

    def metrics(self):
        return {"failed": len(self.failed)}

    def state_dict(self):
        return {"failed": [*self.failed]}

    def load_state_dict(self, state):
        self.failed = [*state["failed"]]


def test_any_operation_orders_the_prompts_inside_a_domain():
    """Three places for a, even rows from 10 down, and one for b, odd rows from 11 down; p10 and p11 fail at first."""

    def made(within=None) -> DomainMix:
        online = DomainMix(StaticWeights({"a": 3, "b": 1}), LabelDomains(), within=within or Backwards())
        make_plan(prompts, {}, 4, None, None, {"online": online})
        return online

    prompts = [Prompt.asking(f"p{i}", f"{i}", topic="ab"[i % 2]) for i in range(12)]
    plan, online = make_plan(prompts, {}, 4, None, None, {}), made()
    assert online.within.group_size == online.group_size
    first = revise([online], plan, plan.rows[:0]).rows
    assert sorted(first[:4]) == [6, 8, 10, 11]
    online.observe(right({"p10": 0, "p8": 4, "p6": 4, "p11": 0}))
    assert online.metrics()["failed"] == 2 and not online.predicts
    assert online.predict(plan.rows) is None and "brier" not in online.metrics()
    again = made()
    again.load_state_dict(online.state_dict())
    for each in (online, again):
        rows = revise([each], plan, plan.rows[:0]).rows  # the next epoch
        assert sorted(rows[:4]) == [4, 6, 8, 9]
        assert [row for row in rows.tolist() if row % 2] == [9, 7, 5, 3, 1, 11] and set(rows[-2:]) >= {11}
    with pytest.raises(InputError, match=r"has within Backwards, and the checkpoint was made with Selection"):
        again.load_state_dict(mixed_state())


def mixed_state() -> dict:
    online, prompts = mixed_selection(Admit(0.6))
    make_plan(prompts, {}, 4, None, None, {"online": online})
    return online.state_dict()


def test_what_is_no_operation_of_the_slot_is_refused_inside_a_mix():
    with pytest.raises(InputError, match=r"DomainMix\.within is .*Nearest.*; write an Online"):
        DomainMix(DADS(), LabelDomains(), within=Nearest())


def test_a_mix_that_has_no_selection_any_more_refuses_the_checkpoint():
    online, prompts = mixed_selection(Admit(0.6))
    make_plan(prompts, {}, 4, None, None, {"online": online})
    plain = DomainMix(StaticWeights({"a": 3, "b": 1}), LabelDomains())
    make_plan(prompts, {}, 4, None, None, {"online": plain})
    with pytest.raises(InputError, match="has within None, and the checkpoint was made with Selection"):
        plain.load_state_dict(online.state_dict())


def test_members_are_numbered_by_how_often_they_were_served():
    assert places_within(np.array([1, 0, 1, 1, 0]), np.array([2, 0, 0, 0, 0])).tolist() == [2, 0, 0, 1, 1]
    assert places_within(np.zeros(0, dtype=int), np.zeros(0, dtype=int)).tolist() == []


def test_the_advantage_is_that_of_the_graded_answers():
    """Three graded of four, 1, 1, 0: mean 2/3, deviation .5774: (1/3 + 1/3 + 2/3) / 3 / .5775 = .7696; a failed group: 0."""
    online = operation("DUMP")
    data = make(11, online=online)
    data.tokenizer = Recorder().tokenizer
    data.set_up_plan()
    nan = torch.nan
    online.observe(outcomes(["p3", "p4"], torch.tensor([[1.0, nan, 1.0, 0.0], [nan] * 4])))
    assert online._results.advantage[1, -1] == pytest.approx(0.7696, abs=1e-3)
    assert online._results.groups.tolist() == [0, 1]


def test_a_checkpoint_of_another_mix_is_refused(tmp_path):
    online = operation("DADS")
    fit_graded(make(24, online=online))
    for other, says in (
        (operation("DUMP"), r"data\.online has mixer DUMP, and the checkpoint was made with DADS"),
        (DomainMix(DADS(keep=0.1), LabelDomains("topic")), r"has window 12, and the checkpoint was made with 40"),
    ):
        data = make(24, online=other)
        data.tokenizer = Recorder().tokenizer
        data.set_up_plan()
        with pytest.raises(InputError, match=says):
            other.load_state_dict(online.state_dict())


def test_a_single_domain_is_told_of():
    online = DomainMix(DADS(), LabelDomains("source"))
    prompts = [Prompt.asking(f"p{i}", f"{i}", source="one") for i in range(8)]
    make_plan(prompts, {}, 2, None, None, {"online": online})
    assert online.idle() == "all prompts are in one domain"
