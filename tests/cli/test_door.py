"""The door's answers to mistyped names, wrong types, bad YAML and files in the place of values: one line, exit code 2.

Nothing is made here: what is wrong is refused while the command line is parsed.
"""

import json
import os
import re
import shutil
import threading

import pytest
import torch

FOLLOWS = "follows from run_dir"

LINES = {  # flags of `fit` -> the line, without the hint at the end
    "class": (["--data.curriculum=EasyToHrad"], "data.curriculum: .*did you mean 'EasyToHard'"),
    "class in a list": (['--model.rewards=[{"class_path": "MathRewrd"}]'], "did you mean 'MathReward'"),
    "class beside plain values": (["--trainer.logger=CSVLoger"], "trainer.logger: .*did you mean 'CSVLogger'"),
    "slot": (["--data.curiculum=LengthOrder"], "data: 'curiculum' is not accepted; did you mean 'curriculum'"),
    "argument": (["--trainer.max_stepss=3"], "'trainer.max_stepss' is not accepted; did you mean 'trainer.max_steps'"),
    "argument of the optimiser": (["--model.optimizer.lrr=1"], "model.optimizer: 'lrr' .*did you mean 'lr'"),
    "argument of a setting": (["--model.sampling.temprature=1"], "did you mean 'sampling.temperature'"),
    "argument within JSON": (
        ['--data.val={"dev": {"source": "x", "limt": 3}}'],
        "data.val: 'limt' .*did you mean 'limit'",
    ),
    "an argument cut short is no argument": (
        ["--overwrit=true"],
        "'overwrit' is not accepted; did you mean 'overwrite'",
    ),
    "int": (["--data.batch_size=many"], "data.batch_size is 'many'; write a whole number "),
    "int of the trainer": (["--trainer.max_steps=many"], "trainer.max_steps is 'many'; write a whole number "),
    "one in place of a list": (
        ["--model.rewards=MathReward"],
        r"model.rewards is 'MathReward'; write a list, as \[MathReward\] ",
    ),
    "argument of the prompts' class": (
        ["--data.train=VerifiersEnv", "--data.train.enviroment=x"],
        "'data.train.enviroment' is not accepted by VerifiersEnv; did you mean 'environment'",
    ),
    "argument of a class by its path": (
        ["--data.train.class_path=saerl_lightning.prompts.file.FilePrompts", "--data.train.init_args.to=x"],
        "'data.train.to' is not accepted by FilePrompts; it takes path, ",
    ),
    "int or null": (["--data.shuffle_seed=x"], "data.shuffle_seed is 'x'; write a whole number or null "),
    "float": (["--model.sampling.temperature=hot"], "model.sampling.temperature is 'hot'; write a number "),
    "float of the optimiser": (["--model.optimizer.lr=fast"], "model.optimizer.lr is 'fast'; write a number "),
    "choice": (["--model.policy.dtype=float8"], "model.policy.dtype is 'float8'; write one of float32, bfloat16 "),
    "mapping": (["--data.val=3"], "data.val is '3'; write a mapping, as {name: value} or null "),
    "within JSON": (
        ['--data.val={"dev": {"source": "x", "limit": "few"}}'],
        "data.val.limit is 'few'; write a whole number",
    ),
    "no class": (["--data.mixing.fraction=0.3"], "data.mixing: .* name the class first, as --data.mixing TailMixing "),
    "no class and no such argument": (["--data.mixing.share=1"], "no shipped Mixing has the argument share"),
    "root": (["--trainer.default_root_dir=x"], f"trainer.default_root_dir {FOLLOWS}.* write --run_dir"),
    "checkpoints' folder": (["--checkpoint.dirpath=x"], f"checkpoint.dirpath {FOLLOWS}.* write --run_dir"),
    "no value": (["--data.train"], "--data.train has no value"),
    "seed below": (["--seed_everything=-1"], "seed_everything is -1; write a whole number from 0 to 4294967295"),
    "seed beyond": ([f"--seed_everything={10**30}"], f"seed_everything is {10**30}; write"),
    "digits": (["--trainer.max_steps=" + "1" * 5000], "trainer.max_steps: .*thousands of digits"),
    "bytes that are no text": (["--data.train=\udcff"], "is not UTF-8 text"),
    "nested value": (["--data.val=" + "[" * 5000], "nested deeper than 64 levels"),
    "key twice in a value": (['--data.val={"dev": "a", "dev": "b"}'], "the key 'dev' for the second time"),
    "code in checkpoints": (["--weights_only=false"], "weights_only is false, which would run code"),
    "None": (["--data.signals=None"], "'None' is no value; write null"),
}


def the_line(ended) -> str:
    """The one line of a refusal."""
    assert ended.code == 2, ended.stderr[-2000:]
    said = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(said) == 1 and said[0].startswith("error: "), ended.stderr[-2000:]
    assert len(said[0]) < 700
    return said[0]


@pytest.fixture
def untouched(workplace):
    before = set(workplace.folder.rglob("*"))
    yield
    assert {each for each in workplace.folder.rglob("*") if each.name != "mine.yaml"} == before


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("flags", "says"), LINES.values(), ids=LINES)
def test_a_mistake_on_the_command_line_is_one_line(workplace, door, flags, says):
    assert re.search(says, the_line(door(workplace.command("fit", *flags))))


VERBS = {
    "verb": (["fti"], "'fti' is none of fit, .*, init; did you mean 'fit'"),
    "tool": (["exprt"], "did you mean 'export'"),
    "no verb of a tool": (["study"], "error: no verb is given; write one of .*run, report, "),
    "no config": (["fit"], "error: no model and no data is given; write -c CONFIG, as -c grpo.yaml"),
    "no place of a tool": (["study", "report"], "error: "),
    "verb of a tool": (["study", "rnu"], "'rnu' is none of .*run, report"),
    "verb of a tool, nearly right": (["study", "reprt"], "did you mean 'report'"),
    "argument of a tool": (["study", "run", "x.yaml", "--jbs=2"], "'jbs' is not accepted; did you mean 'jobs'"),
    "type of a tool": (["study", "run", "x.yaml", "--jobs=two"], "jobs is 'two'; write a whole number"),
    "an argument of a tool cut short": (["export", "a", "b", "--overwrit=true"], "did you mean 'overwrite'"),
}


@pytest.mark.parametrize(("args", "says"), VERBS.values(), ids=VERBS)
def test_a_mistyped_verb_or_tool_is_one_line(door, args, says):
    assert re.search(says, the_line(door(args)))


BOMB = (
    "a0: &a0 [" + "x," * 9 + "x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
)
YAMLS: dict[str, tuple[str | bytes, str]] = {
    "not UTF-8": ("trainer: {max_steps: 3} # café".encode("latin-1"), "is not UTF-8 text"),
    "UTF-16": ("trainer: {max_steps: 3}".encode("utf-16"), "is not UTF-8 text"),
    "a key twice": (
        "model: {init_args: {micro_tokens: 9}}\nmodel: {init_args: {}}",
        "line 2 has the key 'model' for the second",
    ),
    "a key twice, deep": (
        "data:\n  init_args:\n    batch_size: 3\n    batch_size: 4",
        "line 4 has the key 'batch_size'",
    ),
    "nested lists": ("model: " + "[" * 20_000, "nested deeper than 64 levels"),
    "nested blocks": ("- " * 2_000 + "x", "nested deeper than 64 levels"),
    "a bomb of aliases": (BOMB, "more than 100,000 values"),
    "an alias of itself": ("data: &d {init_args: *d}", r"the alias '\*d' stands inside of what it names"),
    "broken": ("trainer: {max_steps: [}", "is no YAML: .* line 1"),
    "a list": ("- trainer", "write a mapping"),
    "a text": ("trainer", "write a mapping"),
    "nothing": ("", "write a mapping"),
    "digits": ("trainer: {max_steps: " + "1" * 5000 + "}", "thousands of digits"),
    "an argument": ("trainer: {max_stepss: 3}", "did you mean 'trainer.max_steps'"),
    "a section": ("modle: {init_args: {micro_tokens: 9}}", "did you mean 'model'"),
    "no class": (
        "data: {init_args: {mixing: {init_args: {fraction: 0.3}}}}",
        "name the class first, as --data.mixing TailMixing",
    ),
    "what follows from run_dir": ("trainer: {default_root_dir: x}", f"trainer.default_root_dir is 'x', and {FOLLOWS}"),
    "a seed": ("seed_everything: -1", "seed_everything is -1; write"),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("content", "says"), YAMLS.values(), ids=YAMLS)
def test_a_config_that_is_wrong_is_one_line(workplace, door, content, says):
    file = workplace.folder / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(says, the_line(door(workplace.command("fit", "-c", str(file)))))


def test_a_config_that_is_missing_or_a_folder_is_one_line(workplace, door):
    for path in (workplace.folder / "nowhere.yaml", workplace.folder):
        assert str(path) in the_line(door(workplace.command("fit", "-c", str(path))))


# -- a value is never a file of configuration --------------------------------------------------------------------------

TEXTS = {  # arguments that take texts beside classes, or lists and mappings of them
    "data.train": lambda data, _: data.train,
    "data.labels": lambda data, _: data.labels,
    "data.signal_cache": lambda data, _: data.signal_cache,
    "model.policy.path": lambda _, model: model.policy.path,
    "model.policy.attention": lambda _, model: model.policy.attention,
    "trainer.strategy": None,
    "run_dir": None,
    "ckpt_path": None,
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_value_that_names_a_file_stays_that_name(workplace, trained, parsed, name):
    """The file holds another file's name, and YAML: neither may arrive in its place."""
    file = workplace.folder / "value.txt"
    shutil.copy(trained.workplace.last, file) if name == "ckpt_path" else file.write_text(f"{workplace.dev}\n")
    settings = parsed(workplace.command("fit", f"--{name}={file}"))
    section, _, argument = name.partition(".")
    value = settings[name] if section not in ("data", "model") else settings[section].init_args[argument]
    assert value == str(file)


def test_sets_and_sources_stay_the_names_they_were_given(workplace, parsed):
    other = workplace.folder / "other.csv"
    other.write_text("prompt,answer\n1 + 1,2\n")
    source = {"source": str(other), "limit": 2}
    settings = parsed(workplace.command("fit", "--data.val=" + json.dumps({"a": str(other), "b": source})))
    assert settings.data.init_args.val["a"] == str(other)
    assert settings.data.init_args.val["b"].source == str(other)


def test_every_argument_that_takes_texts_leaves_files_alone(workplace):
    """Holds for all arguments of all verbs, also those of the classes that can stand in a slot."""
    from saerl_lightning.mistakes import _shipped
    from saerl_lightning.parser import RunParser
    from saerl_lightning.study.spec import StudySpec
    from saerl_lightning.tools.study import run

    readers: list[str] = []
    for cls in [*_shipped(), StudySpec]:
        parser = RunParser(exit_on_error=False)
        try:
            parser.add_class_arguments(cls, "x", fail_untyped=False, sub_configs=True)
        except (ValueError, TypeError):  # of a library, and with arguments that no command line can give
            continue
        readers += [f"{cls.__name__}.{each.dest}" for each in parser._actions if getattr(each, "_enable_path", False)]
    parser = RunParser(exit_on_error=False)
    parser.add_function_arguments(run, as_group=False, sub_configs=True)
    readers += [each.dest for each in parser._actions if getattr(each, "_enable_path", False)]
    assert readers == []


def test_a_pipe_given_as_prompts_is_refused_and_not_waited_for(workplace, door):
    pipe = workplace.folder / "pipe.jsonl"
    os.mkfifo(pipe)
    opener = threading.Timer(
        20, lambda: os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    )  # frees a reader that hangs
    opener.daemon = True
    opener.start()
    ended = door(workplace.command("fit", f"--data.train={pipe}"))
    assert opener.is_alive()
    opener.cancel()
    assert "pipe.jsonl" in the_line(ended)


# -- a checkpoint names nothing ----------------------------------------------------------------------------------------


def test_settings_within_a_checkpoint_change_nothing(workplace, parsed):
    file = workplace.folder / "planted.ckpt"
    planted = {
        "_class_path": "saerl_lightning.training.sft.SFTModule",
        "policy": {"path": "evil", "trust_remote_code": True},
    }
    torch.save({"state_dict": {}, "hyper_parameters": planted, "pytorch-lightning_version": "2.6.0"}, file)
    settings = parsed(workplace.command("test", f"--ckpt_path={file}"))
    assert settings.model.init_args.policy.path == str(workplace.policy)
    assert settings.model.class_path.endswith("GRPOModule") and not settings.model.init_args.policy.trust_remote_code


def test_a_checkpoint_behind_a_web_address_is_read_without_running_code(workplace, parsed):
    assert parsed(workplace.command("test", "--ckpt_path=https://example.org/x.ckpt")).weights_only is True
