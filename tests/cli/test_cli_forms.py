"""Every form of the command line that the README promises, and what it refuses. Nothing is made or run here."""

import pytest

from saerl_lightning import cli

CONFIGS = cli.Path(__file__).parents[2] / "configs"
GRPO = ["-c", str(CONFIGS / "grpo.yaml")]
SAERL = [*GRPO, "-c", str(CONFIGS / "saerl.yaml")]
SLOTS = ("signals", "filtering", "clustering", "curriculum", "mixing")
FILLED = {
    "signals": "SAESignals",
    "filtering": "QualityFilter",
    "clustering": "KMeansClusters",
    "curriculum": "EasyToHard",
    "mixing": "TailMixing",
}


def slots(config) -> dict[str, str | None]:
    data = config.data.init_args
    return {name: data[name] and data[name].class_path.rpartition(".")[2] for name in SLOTS}


@pytest.fixture
def overlay(tmp_path):
    def write(text: str) -> list[str]:
        path = tmp_path / f"overlay-{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(text)
        return ["-c", str(path)]

    return write


def test_the_baseline_has_every_slot_empty_and_the_overlay_fills_them_all(parsed):
    assert slots(parsed(["fit", *GRPO])) == dict.fromkeys(SLOTS)
    assert slots(parsed(["fit", *SAERL])) == FILLED


@pytest.mark.parametrize("data", ["data: {curriculum: LengthOrder}", "data: {init_args: {curriculum: LengthOrder}}"])
def test_an_overlay_of_one_slot_merges(parsed, overlay, data):
    config = parsed(["fit", *SAERL, *overlay(data)])
    assert slots(config) == {**FILLED, "curriculum": "LengthOrder"}
    assert config.data.init_args.train.init_args.path == "zwhe99/DeepMath-103K"  # the rest of `data` stays
    assert config.data.init_args.batch_size == 16


def test_null_turns_one_slot_off_and_a_later_config_turns_it_on_again(parsed, overlay):
    off = ["fit", *SAERL, "--data.curriculum", "null"]
    assert slots(parsed(off)) == {**FILLED, "curriculum": None}
    assert slots(parsed([*off, *overlay("data: {curriculum: LengthOrder}")])) == {**FILLED, "curriculum": "LengthOrder"}


def test_a_flag_swaps_one_class_and_changes_one_argument(parsed):
    data = parsed(["fit", *SAERL, "--data.signals", "RandomSignals", "--data.mixing.fraction", "0.5"]).data.init_args
    assert data.signals.class_path.endswith("RandomSignals") and data.mixing.init_args.fraction == 0.5
    assert data.filtering.init_args.drop == 0.1


def test_null_reaches_arguments_of_every_depth(parsed):
    """Left alone, jsonargparse hands it on as the text 'None': a system prompt, or an error where a number is taken."""
    nulls = ["--data.chat.system", "--data.train.limit", "--model.objective.correction", "--model.policy.lora"]
    config = parsed(["fit", *SAERL, *(f"{name}=null" for name in nulls), "--model.guard.threshold", "null"])
    data, model = config.data.init_args, config.model.init_args
    assert data.chat.system is None and data.train.init_args.limit is None
    assert model.objective.init_args.correction is None
    assert model.policy.lora is None and model.guard.threshold is None


@pytest.mark.parametrize("slot", SLOTS)
def test_the_ablations_empty_one_slot_each(parsed, slot):
    config = parsed(["fit", *SAERL, "-c", str(CONFIGS / f"ablate/no_{slot}.yaml")])
    assert slots(config) == {**FILLED, slot: None}


def test_a_slot_takes_a_class_from_elsewhere_by_its_dotted_path(parsed, tmp_path, monkeypatch):
    (tmp_path / "my_order.py").write_text(
        "from saerl_lightning.data.callback import Curriculum\n"
        "class Backwards(Curriculum):\n"
        "    def __init__(self, step: int = 1): self.step = step\n"
        "    def difficulty(self, plan, prompts, features): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = parsed(["fit", *SAERL, "--data.curriculum", "my_order.Backwards", "--data.curriculum.step", "2"]).data
    assert (
        data.init_args.curriculum.class_path == "my_order.Backwards" and data.init_args.curriculum.init_args.step == 2
    )


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_the_same_configs_serve_evaluation(parsed, verb):
    assert parsed([verb, *SAERL, "--ckpt_path", "best"]).data.init_args.batch_size == 16


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data.curiculum", "LengthOrder"], "data: 'curiculum' is not accepted; did you mean 'curriculum'?"),
        (["--data.mixing.fractoin", "0.5"], "'fractoin' is not accepted; did you mean 'fraction'?"),
        (["--data.mixing.fraction", "half"], "data.mixing.fraction is 'half'; write a number"),
        (["--data.curriculum", "RandomFilter"], "'RandomFilter' fits no class"),  # a class of another role
        (["--data.curriculum", "RandomFilter"], "it belongs at data.filtering or data.extra: write --data.filtering R"),
        (["--data.help", "QualityFilter"], "data.extra: write -c grpo.yaml --data.filtering.help QualityFilter ("),
        (["--model.help", "GRPO"], "it belongs at model.objective: write -c grpo.yaml --model.objective.help GRPO"),
        (["trainer.max_steps=3"], "'trainer.max_steps' is not accepted without dashes; write --trainer.max_steps 3"),
        (["trainer.max_steps", "3"], "is not accepted without dashes; write --trainer.max_steps 3"),
        (["+data.batch_size=3"], "'data.batch_size' is not accepted without dashes; write --data.batch_size 3"),
        (["--trainer.logger", "ProgressLines"], "fits no class for this place; did you mean 'ProgressBar'"),
        (["--data.curriculum", "LengthOrdre"], "'LengthOrdre' fits no class"),
        (["--data.curriculum", "nowhere.LengthOrder"], "No module named 'nowhere'"),
        (["--data.curriculum", "[LengthOrder]"], "Not a valid subclass of Curriculum"),
        (["--data.curriculum", "None"], "'None' is no value; write null"),
        (["--data.curriculum=None"], "'None' is no value; write null"),
        (["--data.curriculum", ""], "'' fits no class"),
        (["--data.curriculum", "false"], "'false' fits no class"),
        (["--model.engine", "null"], "required: engine"),  # only a slot may be empty
        (["--model.rewards", '[{"class_path": "GoodReward"}]'], "'GoodReward' fits no class"),
        (["--trainer.max_stps", "3"], "'trainer.max_stps' is not accepted; did you mean 'trainer.max_steps'"),
        (["-c", "nowhere.yaml"], "there is no config 'nowhere.yaml' here"),
    ],
)
def test_what_does_not_fit_is_refused_with_one_short_message(door, flags, says):
    ended = door(["fit", *SAERL, *flags])
    assert ended.code == 2
    assert says in ended.error
    assert len(ended.error.splitlines()) < 15


def test_help_on_a_slot_whose_owner_no_config_names_says_so(door):
    said = (
        "'filtering.help' is not accepted; name the class of data before it, as in -c grpo.yaml --data.filtering.help"
    )
    assert said in door(["fit", "--data.filtering.help", "QualityFilter"]).error


def test_a_mistyped_slot_in_a_file_is_refused_too(door, overlay):
    ended = door(["fit", *GRPO, *overlay("data: {init_args: {curiculum: LengthOrder}}")])
    assert ended.code == 2 and "curiculum" in ended.error
