"""`memory`: whether a step fits on cards that are not here, from a configuration file alone."""

import json
import shlex

import pytest

from saerl_lightning import cli
from saerl_lightning.errors import InputError

# Of Qwen2.5-7B's published config.json.
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
}
PARAMETERS = 7_615_616_512  # as the model's card gives them


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """What `memory` prints for a 7B model of which only the configuration is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen/config.json").write_text(json.dumps(QWEN))

    def told(*flags: str) -> str:
        common = ["memory", "-c", "grpo.yaml", "--model.policy.path=qwen", "--trainer.precision=bf16-mixed"]
        cli.run([*common, "--trainer.accelerator=cpu", *flags])
        return capsys.readouterr().out

    return told


def gigabytes(said: str, part: str) -> float:
    return float(next(line for line in said.splitlines() if line.strip().startswith(part)).split()[-1])


def test_a_model_whose_optimiser_alone_fills_the_card_does_not_fit(told):
    said = told("--card=80")
    assert gigabytes(said, "optimiser") == pytest.approx(8 * PARAMETERS / 1e9, abs=0.06)  # AdamW, float32
    assert "does not fit: at most" in said and "GB of 72.0" in said
    assert "it fits with --model." in said and "--model.policy.lora" in said


def test_the_advised_flags_make_it_fit(told):
    advised = told("--card=80").rstrip().partition("it fits with ")[2].rpartition(": ")[0]
    again = told("--card=80", *shlex.split(advised))
    assert "\nfits: at most" in again and "does not fit" not in again
    assert gigabytes(again, "optimiser") < 1


def test_an_engine_that_sleeps_is_advised_where_it_is_enough_and_only_to_one_that_is_awake(told):
    flags = ("--card=64", "--model.micro_tokens=4096", "--model.policy.dtype=bfloat16")
    flags += ("--model.policy.lora={rank: 16, alpha: 32}",)
    awake = told(*flags)
    advised = awake.rstrip().partition("it fits with ")[2].rpartition(": ")[0]
    assert "does not fit" in awake and advised == "--model.engine.sleep_level 1"
    asleep = told(*flags, *shlex.split(advised))
    assert "\nfits: at most" in asleep
    # The update no longer holds the engine's weights and cache.
    held, freed = (float(said.partition("updating ")[2].partition(",")[0]) for said in (awake, asleep))
    assert held - freed == pytest.approx(gigabytes(awake, "engine") + gigabytes(awake, "kv cache"), abs=0.11)
    for engine in ("--model.engine.sleep_level=2", "--model.engine=HFEngine"):
        assert "sleep_level" not in told("--card=24", engine)


def test_a_small_model_is_told_in_megabytes(told, tmp_path):
    (tmp_path / "small").mkdir()
    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 256,
    }
    (tmp_path / "small/config.json").write_text(json.dumps({**QWEN, **small}))
    said = told("--model.engine=HFEngine", "--model.policy.path=small", "--model.micro_tokens=4096")
    assert "; in MB:" in said and " MB of 72.0 GB;" in said
    parameters = 2 * 256 * 64 + 2 * (64 * (64 + 2 * 64) + 128 + 64 + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    assert gigabytes(said, "optimiser") == pytest.approx(8 * parameters / 1e6, abs=0.06)


def test_eight_cards_hold_a_share_of_the_prompts_each_and_no_share_of_the_weights(told):
    one, eight = (told("--model.engine=HFEngine", f"--cards={count}") for count in (1, 8))
    assert gigabytes(eight, "weights") == gigabytes(one, "weights")
    assert gigabytes(eight, "gradients") == pytest.approx(2 * gigabytes(one, "gradients"), abs=0.11)  # DDP's buckets
    assert "each of 8 cards of 80 GB" in eight


def test_eight_cards_that_share_the_policy_hold_an_eighth_of_its_optimiser(told):
    shared = told("--cards=8", "--trainer.strategy=sharded")
    assert gigabytes(shared, "optimiser") == pytest.approx(PARAMETERS / 1e9, abs=0.06)
    assert gigabytes(shared, "gradients") == pytest.approx(PARAMETERS / 2 / 1e9, abs=0.06)


def test_sharing_the_policy_is_advised_before_adapters(told):
    lighter = ("--cards=8", "--model.micro_tokens=4096", "--model.policy.gradient_checkpointing=true")
    said = told(*lighter, "--model.engine.sleep_level=1")
    advised = said.rstrip().partition("it fits with ")[2].rpartition(": ")[0]
    assert advised == "--trainer.strategy sharded"
    assert "\nfits: at most" in told(*lighter, "--model.engine.sleep_level=1", *shlex.split(advised))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--cards=8", "--trainer.strategy=sharded", "--model.engine=HFEngine"], "write --model.engine VLLMEngine"),
        (["--cards=3", "--model.engine=HFEngine"], "data.batch_size is 16, no multiple of 3"),
        (["--model.policy.path=nowhere"], "model.policy.path 'nowhere'"),
        (["--card=0"], "--card is 0.0; write a number above 0"),
    ],
)
def test_what_can_not_be_told_is_refused_in_one_line(told, flags, says):
    with pytest.raises(InputError) as refused:
        told(*flags)
    assert says in str(refused.value) and "\n" not in str(refused.value)
