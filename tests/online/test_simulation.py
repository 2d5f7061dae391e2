"""The simulation of online operations: what is drawn, and what an oracle reaches."""

import numpy as np
import pytest

from saerl_lightning.data.planning import make_plan
from saerl_lightning.online.beliefs.prompt_beta import PromptBeta
from saerl_lightning.online.rules.highest_chance import HighestChance
from saerl_lightning.online.selection import Selection
from saerl_lightning.online.simulation import World, oracle, play
from saerl_lightning.records import Prompt


def pool(count: int) -> list[Prompt]:
    return [Prompt.asking(f"p{i}", f"word {i}") for i in range(count)]


def plan(prompts, operations, batch_size=4):
    return make_plan(prompts, {}, batch_size, None, None, operations)


def test_rates_move_on_the_logit_scale_and_known_extremes_are_inside():
    """Logit .5 = 0; one down and two steps of a half up is 0 again; 0 is taken for .002."""
    world = World(np.array([0.5, 0.0]), 8, offset=-1.0, shift=0.5)
    assert world.at(2)[0] == pytest.approx(0.5)
    assert world.at(2)[1] == pytest.approx(0.002)
    assert world.at(0)[0] == pytest.approx(1 / (1 + np.e))


def test_the_share_that_varies_is_that_of_the_binomial():
    """400 groups of two answers at .5: half vary, to four standard errors of .025."""
    prompts, world = pool(40), World(np.full(40, 0.5), 2)
    played = play({}, plan(prompts, {}), prompts, world, 100, 0)
    assert played["effective"] == pytest.approx(0.5, abs=0.1)


def test_an_oracle_serves_what_varies_first_and_a_belief_learns_it_in_a_second_epoch():
    rates = np.where(np.arange(40) % 4 == 3, 0.5, 1.0)  # a prompt in four
    prompts, world = pool(40), World(rates, 8)
    fixed = play({}, plan(prompts, {}), prompts, world, 2, 0)["effective"]
    assert fixed < 0.6
    knowing = {"online": oracle(world)}
    assert play(knowing, plan(prompts, knowing), prompts, world, 2, 0)["effective"] > 0.95
    counts = {"online": Selection(PromptBeta(), HighestChance())}
    made = plan(prompts, counts)
    first = play(counts, made, prompts, world, 10, 0)
    both = play(counts, made, prompts, world, 12, 0)
    second = (12 * both["effective"] - 10 * first["effective"]) / 2
    assert first["effective"] < 0.4
    assert second > 0.9
    assert both["brier"] < first["brier"]


def test_a_play_begins_anew_each_time():
    prompts, world = pool(16), World(np.linspace(0, 1, 16), 8)
    counts = {"online": Selection(PromptBeta(), HighestChance())}
    made = plan(prompts, counts)
    assert play(counts, made, prompts, world, 9, 3) == play(counts, made, prompts, world, 9, 3)
