"""Arguments that objectives pass on to their bases are arguments like any other, in help, files and messages."""

import re

import pytest
import yaml

from saerl_lightning import cli
from tests.cli.conftest import BASELINE

TERMS = {"kl": "null", "entropy": "null", "correction": "null"}
CLIP = {"clip_low": "0.2", "clip_high": "0.2", "dual_clip": "null"}
OBJECTIVES = {
    "GRPO": {"scale_by_std": "True", **CLIP, **TERMS},
    "DAPO": {"mask_truncated": "False", **CLIP, "clip_high": "0.28", **TERMS},
    "DrGRPO": {**CLIP, **TERMS},
    "BNPO": {"beta_normalised": "False", **CLIP, **TERMS},
    "CISPO": {"ratio_cap": "5.0", "ratio_floor": "0.0", **TERMS},
    "GSPO": {**CLIP, "clip_low": "0.0003", "clip_high": "0.0004", **TERMS},
    "RLOO": {**CLIP, **TERMS},
    "ReinforcePP": {"baseline": "none", **CLIP, **TERMS},
}
ENTRY = re.compile(r"(\w+) (?:[A-Z_]+|\{[^}]*\}) (.*) \(type: .*, default: (.*)\)$")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_help_shows_every_argument_with_its_text_and_default(name, capsys):
    cli.run(["fit", "--model=GRPOModule", f"--model.objective.help={name}"])
    shown = re.split(r" --objective\.", " ".join(capsys.readouterr().out.partition("Help for")[2].split()))
    entries = [found.groups() for each in shown if (found := ENTRY.match(each))]
    assert {key: default for key, _, default in entries} == OBJECTIVES[name]
    assert all(re.match("[A-Z]", text) and text.endswith(".") for _, text, _ in entries), entries


def test_a_recorded_configuration_holds_every_argument(capsys):
    cli.run(["fit", *BASELINE, "--model.objective=DAPO", "--model.objective.kl.weight=0.5", "--print_config"])
    given = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["objective"]["init_args"]
    assert given.keys() == OBJECTIVES["DAPO"].keys()
    assert given["kl"]["weight"] == 0.5 and given["clip_high"] == 0.28


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model.objective.clip_high=much"], r"model\.objective\.clip_high is 'much'; write a number"),
        (["--model.objective.clip_hgih=0.3"], r"clip_hgih.*did you mean '.*clip_high'"),
        (["--model.objective.kl.wieght=0.3"], r"wieght.*did you mean '.*weight'"),
        (["--model.objective.clip_low=1.5"], r"clip range is low 1\.5, high 0\.2"),
        (["--model.objective=CISPO", "--model.objective.dual_clip=3"], "dual_clip"),
    ],
)
def test_a_passed_on_argument_is_refused_in_one_line(workplace, door, flags, says):
    ended = door(workplace.command("fit", *flags))
    assert ended.code == 2 and re.search(says, ended.error), ended.error
    assert ended.error.strip().count("\n") == 0
