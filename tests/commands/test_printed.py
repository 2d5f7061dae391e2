"""Every command that is printed somewhere says what it needs, is spelled in one way, and is accepted as it stands."""

import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from jsonargparse import auto_parser

from saerl_lightning import cli
from saerl_lightning.study.spec import StudySpec
from saerl_lightning.tools.export import export
from saerl_lightning.tools.study import VERBS

sys.path.append(str(Path(__file__).parent))
from printed import PAGES, ROOT, commands

NEEDS = yaml.safe_load((Path(__file__).parent / "needs.yaml").read_text())
LISTED = {need: texts for need, texts in NEEDS.items() if need != "none"}
RUN = NEEDS["none"]
EVERY = commands()
PRINTED = {each.text for each in EVERY if not each.text.startswith("-")}
FLAGS = sorted({each.text for each in EVERY if each.text.startswith("-")})


def test_every_printed_command_says_what_it_needs():
    listed = {text for texts in [*LISTED.values(), *RUN.values()] for text in texts}
    places = {each.text: each.place for each in EVERY}
    assert not {text: places[text] for text in PRINTED - listed}, "list them in tests/commands/needs.yaml"
    assert not listed - PRINTED, "they are printed nowhere: take them out of tests/commands/needs.yaml"


def test_what_is_run_for_a_page_is_printed_there_in_that_order():
    for page, texts in RUN.items():
        there = [each.text for each in EVERY if each.place.startswith(f"{page}:") and each.in_block]
        in_blocks = [text for text in texts if text in there]
        assert in_blocks == [text for text in dict.fromkeys(there) if text in texts], page
        spans = {each.text for each in EVERY if each.place.startswith(f"{page}:")}
        assert set(texts) <= spans, page


def test_there_is_one_spelling():
    """`make` leaves `.venv`, which nothing activates, so a bare `python` or `pip` is another one or none."""
    bare = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python |pip |wandb |pytest |ray |mkdocs )")
    assert not [each for each in EVERY if each.in_block and bare.match(each.text)]
    programs = {each.text.split()[0] for each in EVERY if each.in_block}
    assert all(re.match(r"-|make$|\.venv/bin/\w+|python3$|[A-Z_]+=", program) for program in programs), programs


def test_no_block_hides_a_command():
    """A fence in a language that is not read here would be."""
    known = {"", "bash", "diff", "yaml", "yml", "json", "python", "text"}
    found = {language for page in PAGES for language in re.findall(r"^```(\w+)", page.read_text(), re.MULTILINE)}
    assert found <= known


@pytest.fixture
def composed(monkeypatch, tmp_path):
    """The command line is parsed and its classes are made; nothing runs."""
    monkeypatch.setattr(cli.RunCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setenv("WANDB_MODE", "offline")  # a configuration that logs there is refused without a key
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("mine.yaml", "cluster.yaml"):
        (tmp_path / name).write_text("data: {init_args: {train: prompts/train.jsonl}}\n")
    return lambda words: cli.run([*words, "--trainer.accelerator=cpu"])


def keys(flags: str) -> set[str]:
    """What a line of flags sets."""
    return {"trainer.logger" if flag == "-c" else flag.lstrip("-") for flag in re.findall(r"(?:^| )(-[-\w.]+)", flags)}


def packed() -> list[list[str]]:
    """Lines of flags in as few groups as can be, no two of a group for the same argument."""
    groups: list[list[str]] = []
    for line in FLAGS:
        free = (group for group in groups if not any(clash(keys(line), keys(other)) for other in group))
        group = next(free, None)
        if group is None:
            groups.append(group := [])
        group.append(line)
    return groups


def clash(some: set[str], others: set[str]) -> bool:
    return any(f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.") for a in some for b in others)


@pytest.mark.parametrize("lines", packed(), ids=" ".join)
def test_flags_are_accepted_behind_the_baseline(composed, lines):
    flags = shlex.split(" ".join(lines))
    assert composed(["fit", "-c", "configs/grpo.yaml", *flags]).model is not None


VERB = re.compile(r"(?:\.venv/bin/python )?main\.py (fit|plan|label|memory|serve|validate|test|predict) (-c .+)")
COMPOSED = sorted(
    {VERB.match(text)[0].partition("main.py ")[2] for texts in LISTED.values() for text in texts if VERB.match(text)}
)


@pytest.mark.parametrize("command", COMPOSED)
def test_what_can_not_be_run_here_is_composed(composed, command):
    assert composed(shlex.split(command)).model is not None


TOOLS = {"export": export, **{f"study {verb}": tool for verb, tool in VERBS.items()}}


@pytest.mark.parametrize(
    "command",
    sorted(text for texts in LISTED.values() for text in texts if re.search(r"main\.py (study|export) .* ?\S", text)),
)
def test_tools_accept_their_command_lines(command):
    words = shlex.split(re.sub(r" > \S+$", "", command.partition("main.py ")[2]))
    count = 2 if words[0] == "study" else 1
    name, given = " ".join(words[:count]), words[count:]
    if not given:
        assert name in TOOLS  # only a name
        return
    parsed = auto_parser(TOOLS[name], as_positional=True).parse_args(given)
    if (spec := parsed.get("spec")) is not None and Path(ROOT, str(spec)).is_file():
        assert StudySpec.read(str(ROOT / str(spec))).arms


BENCHMARKS = sorted({text for text in LISTED["hours"] if "benchmarks/" in text})


@pytest.mark.parametrize("script", sorted({re.search(r"benchmarks/\w+\.py", text)[0] for text in BENCHMARKS}))
def test_benchmarks_know_their_flags(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for command in BENCHMARKS:
        if script in command:
            assert not [flag for flag in re.findall(r"--[\w-]+", command) if f"{flag} " not in said + " "], command


@pytest.mark.parametrize("command", sorted(text for text in PRINTED if text.startswith("make ")))
def test_make_has_the_target(command):
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [
        name
        for text in LISTED["packages"]
        for found in re.findall(r"(?:\.|lightning)\[([\w,]+)\]", text)
        for name in found.split(",")
    ]
    assert len(named) > 3 and set(named) <= set(extras)
