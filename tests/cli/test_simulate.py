"""`simulate`: online operations played over prompts with known pass rates, from YAML to the numbers of every play."""

import json

import numpy as np
import pytest

from saerl_lightning import cli
from saerl_lightning.errors import InputError
from saerl_lightning.plan_page.served import RATES, WHOLE, Served
from saerl_lightning.verbs.known_rates import told
from tests.cli.conftest import CONFIGS, record, write_prompts

MOPPS = ("-c", str(CONFIGS / "online/mopps.yaml"))


@pytest.fixture
def command(workplace):
    """A command line over sixty prompts, of which one in four is neither always right nor always wrong."""
    rows = [record(i) | {"difficulty": 50 if i % 4 == 3 else 100 * (i % 2)} for i in range(60)]
    write_prompts(workplace.train, rows)
    return lambda *flags: workplace.command("simulate", *flags)


def test_every_arm_is_played_once_a_seed_and_the_oracle_serves_what_varies(command, workplace, capsys):
    out = workplace.folder / "played.json"
    cli.run(command(*MOPPS, "--steps=60", "--seeds=3", f"--out={out}"))
    said = capsys.readouterr().out
    assert "60 steps, 3 seeds: share of groups that vary" in said
    assert "nothing learns in a simulation" in said
    plays = json.loads(out.read_text())["plays"]
    assert {name: len(runs) for name, runs in plays.items()} == {"the plan as it is": 3, "online": 3, "oracle": 3}
    mean = {name: np.mean([run["effective"] for run in runs]) for name, runs in plays.items()}
    # Two epochs serve every prompt twice whatever the order: 15 in 60 vary but for 2 in 16 groups of four.
    assert list(mean.values()) == pytest.approx([0.25 * 14 / 16] * 3, abs=0.06)
    cli.run(command(*MOPPS, "--steps=7", "--seeds=3", f"--out={out}"))
    plays = json.loads(out.read_text())["plays"]
    assert np.mean([run["effective"] for run in plays["oracle"]]) > 0.7


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "data.online is null, so there is nothing to simulate"),
        ((*MOPPS, "--label=level"), "simulate.label is 'level', but no prompt has it"),
        ((*MOPPS, "--steps=0"), "steps is 0"),
    ],
)
def test_what_can_not_be_played_is_refused(command, flags, said):
    with pytest.raises(InputError, match=said):
        cli.run(command(*flags))


def served(path, uids, right, graded):
    """Writes the file of a run that measured these prompts."""
    zeros, nan = np.zeros(len(uids), dtype=np.int64), np.full(len(uids), np.nan)
    counts = {"right": np.array(right, float), "graded": np.array(graded, float)}
    columns = dict.fromkeys(WHOLE, zeros) | dict.fromkeys(RATES, nan) | counts
    texts = {"uid": np.array(uids, object), "why": np.array([""] * len(uids), object)}
    Served(columns | texts, np.zeros((0, 4)), np.zeros((10, 3))).write(path)
    return path


def test_rates_that_a_run_measured_are_played_and_other_prompts_left_out(workplace, capsys):
    """The prompts have no label, and every fourth of those measured was right half of the time; file order is another."""
    write_prompts(workplace.train, [{**record(i), "difficulty": None} for i in range(60)])
    uids = [f"train-{i}" for i in reversed(range(40))] + ["gone"]
    right = [4 if i % 4 == 3 else 8 * (i % 2) for i in reversed(range(40))] + [8]
    rates = served(workplace.folder / "s.parquet", uids, right, [8] * 41)
    out = workplace.folder / "played.json"
    cli.run(workplace.command("simulate", *MOPPS, "--steps=20", "--seeds=3", f"--rates={rates}", f"--out={out}"))
    said = " ".join(capsys.readouterr().out.split())
    assert "40 of 60 prompts have a measured pass rate, by 8 answers in the median (8 to 8)" in said
    assert "a rate of 0.5 is ± 0.18 (1 sd)" in said and "20 prompts without one are left out" in said
    plays = json.loads(out.read_text())["plays"]
    mean = {name: np.mean([run["effective"] for run in runs]) for name, runs in plays.items()}
    # Whole epochs: 10 of the 40 vary but for 2 in 16 groups of four; with the 20 others it would be less.
    assert list(mean.values()) == pytest.approx([0.25 * 14 / 16] * 3, abs=0.06)


def test_the_luck_of_few_answers_is_told():
    """By hand: .25/7/3 = .0119 of the variance .25 of .5, 0, 1; of two answers .125 of .1667, and .5 is ± .35."""
    said = told(np.array([0.5, 0.0, np.nan, 1.0]), np.array([8.0, 8, 0, 8]))
    assert "3 of 4 prompts" in said and "± 0.18 (1 sd), and 5% of the variance" in said
    assert "± 0.35 (1 sd), and 75% of" in told(np.array([0.5, 0.0, 1.0, 0.5]), np.full(4, 2.0))
    assert "variance" not in told(np.array([1.0, 0.0]), np.ones(2))
    assert "parts of a point" not in said
    assert "its reward gave parts of a point" in told(np.array([0.5, 0.55]), np.full(2, 8.0))


@pytest.mark.parametrize(
    ("uids", "graded", "refusal"),
    [
        (["other-1"], [8], r"of another pool: none of its 1 prompts \(first: 'other-1'\)"),
        ([], [], r"measured pass rates of 0 of 60 prompts, and simulate needs \d+"),
        (["train-1", "train-2"], [0, 0], r"measured pass rates of 0 of 60 prompts"),
        (["train-1", "train-2"], [8, 8], r"measured pass rates of 2 of 60 prompts"),
    ],
)
def test_rates_of_another_pool_or_of_too_few_prompts_are_refused(command, workplace, uids, graded, refusal):
    rates = served(workplace.folder / "s.parquet", uids, [0] * len(uids), graded)
    with pytest.raises(InputError, match=refusal):
        cli.run(command(*MOPPS, f"--rates={rates}"))


def test_a_file_without_measured_rates_is_refused(command, workplace):
    with pytest.raises(InputError, match=r"is no readable parquet file"):
        cli.run(command(*MOPPS, f"--rates={workplace.train}"))
    with pytest.raises(InputError, match=r"is no file; write the path of a served\.parquet"):
        cli.run(command(*MOPPS, f"--rates={workplace.folder / 'none'}"))
