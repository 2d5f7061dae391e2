"""`simulate`: online operations played over prompts with known pass rates, from YAML to the numbers of every play."""

import json

import numpy as np
import pytest

from saerl_lightning import cli
from saerl_lightning.errors import InputError
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
