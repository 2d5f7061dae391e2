"""ModelReward against transformers itself, one row at a time; what it refuses, and what it holds in memory."""

import gc
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.reward.classifier import by_tokens, unused_id
from saerl_lightning.reward.model_reward import ModelReward
from tests.reward.examples import rollouts

PROMPTS = [
    Prompt("p", ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 2?"}), "3"),
    Prompt.asking("q", "Say hello to everyone who is in this room, one by one"),
    Prompt.asking("r", "?"),
]
TEXTS = [
    ["It is 3", "no", "", "a rather long answer that goes on and on " * 9],
    ["Hello<|im_end|>", "<|endoftext|>", "Hello <|endoftext|>", "é" * 30],
    ["yes", "yes", "1", "2 " * 40],
]


def make(folder: Path, source: Path, labels: int = 1, pad: int | None = None, seed: int = 0) -> Path:
    """A reward model with random weights, a tokenizer, and an explicit padding token or none."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=labels, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    model.config.pad_token_id = pad
    if labels == 3:
        model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "policy"
    return build_tiny_policy(str(folder), ["What is 1 + 2? It is 3"], hidden_size=64, layers=2)


@pytest.fixture(scope="module")
def folders(policy, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reward_models")
    end = AutoTokenizer.from_pretrained(policy).eos_token_id
    return {
        "no padding token": make(root / "plain", policy),
        "a padding token": make(root / "padded", policy, pad=0),
        "padded with its end": make(root / "ends", policy, pad=end),
        "three labels": make(root / "labels", policy, labels=3, pad=0),
    }


@torch.no_grad()
def slowly(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The logits of each completion, by transformers and without any padding: (P, G, labels)."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt, texts in zip(PROMPTS, TEXTS, strict=True):
        for text in texts:
            chat = [*prompt.messages, {"role": "assistant", "content": text}]
            ids = tokenizer.apply_chat_template(chat, tokenize=True, return_tensors="pt", return_dict=True)["input_ids"]
            found.append(model(input_ids=ids).logits[0].float())
    return torch.stack(found).view(len(PROMPTS), len(TEXTS[0]), -1)


@pytest.mark.parametrize("kind", ["no padding token", "a padding token", "padded with its end"])
@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
def test_scores_are_those_of_transformers_one_row_at_a_time(folders, kind, batch_tokens):
    reward = ModelReward(str(folders[kind]), dtype="float32", batch_tokens=batch_tokens)
    scores, wanted = reward(PROMPTS, rollouts(*TEXTS)), slowly(folders[kind])[..., 0]
    assert wanted.std() > 0.1 and scores.dtype == torch.float32
    assert torch.allclose(scores, wanted, atol=1e-5)


def test_scores_in_bfloat16_are_near_those_in_float32(folders):
    folder = folders["a padding token"]
    scores, wanted = ModelReward(str(folder))(PROMPTS, rollouts(*TEXTS)), slowly(folder)[..., 0]
    assert not scores.equal(wanted) and torch.allclose(scores, wanted, atol=0.05 * float(wanted.abs().max()))


def test_a_score_is_a_labels_logit_or_probability_scaled(folders):
    folder, texts = str(folders["three labels"]), rollouts(*TEXTS)
    logits = slowly(folders["three labels"])
    assert torch.allclose(ModelReward(folder, label="good", dtype="float32")(PROMPTS, texts), logits[..., 2], atol=1e-5)
    scaled = ModelReward(folder, label=0, dtype="float32", shift=0.5, scale=-3.0)(PROMPTS, texts)
    assert torch.allclose(scaled, -3.0 * (logits[..., 0] - 0.5), atol=1e-4)
    share = ModelReward(folder, label="fair", output="probability", dtype="float32")(PROMPTS, texts)
    assert torch.allclose(share, logits.exp()[..., 1] / logits.exp().sum(-1), atol=1e-5)
    [single] = slowly(folders["a padding token"]).split(1, -1)
    given = ModelReward(str(folders["a padding token"]), output="probability", dtype="float32")(PROMPTS, texts)
    assert torch.allclose(given, 1 / (1 + (-single[..., 0]).exp()), atol=1e-5)


def test_the_trainers_autocast_changes_nothing(folders):
    reward = ModelReward(str(folders["a padding token"]), dtype="float32")
    plain = reward(PROMPTS, rollouts(*TEXTS))
    with torch.autocast("cpu", torch.bfloat16):
        assert reward(PROMPTS, rollouts(*TEXTS)).equal(plain)


def test_a_batch_has_at_most_its_tokens(folders):
    reward = ModelReward(str(folders["a padding token"]), dtype="float32", batch_tokens=128)
    reward.require(PROMPTS)
    sizes = []
    reward._loaded[0].model.register_forward_pre_hook(
        lambda model, given, named: sizes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    reward(PROMPTS, rollouts(*TEXTS))
    assert sum(rows for rows, _ in sizes) == 12 and len(sizes) > 3
    assert all(rows * width <= 128 or rows == 1 for rows, width in sizes) and any(rows > 1 for rows, _ in sizes)


def test_groups_by_hand():
    assert by_tokens([3, 9, 2, 4, 30], 10) == [[4], [1], [3, 0], [2]]
    assert by_tokens([5, 5, 5], 15) == [[0, 1, 2]] and by_tokens([], 5) == []
    assert unused_id([[0, 1], [3]], 9) == 2 and unused_id([[0, 1], [2]], 3) is None


def test_what_is_too_long_fails_or_is_cut_at_the_side_that_is_named(folders):
    folder = folders["a padding token"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    model.requires_grad_(False)
    chat = [*PROMPTS[1].messages, {"role": "assistant", "content": "Hello"}]
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert len(ids) > 24
    settings = {"dtype": "float32", "max_tokens": 24}
    for side, kept in (("left", ids[-24:]), ("right", ids[:24])):
        score = ModelReward(str(folder), too_long=side, **settings)(PROMPTS[1:2], rollouts(["Hello"]))
        assert float(score) == pytest.approx(float(model(input_ids=torch.tensor([kept])).logits), abs=1e-5)
    reward = ModelReward(str(folder), **settings)
    scores = reward(PROMPTS[1:], rollouts(["Hello"], ["a"]))
    assert scores[0].isnan() and scores[1].isfinite()
    assert reward.last_failure == (
        f"was not graded: its {len(ids)} tokens, prompt included, are beyond 24 for the prompt 'q' and the "
        "completion 'Hello'"
    )


def test_what_is_no_text_costs_its_own_grade(folders):
    reward = ModelReward(str(folders["a padding token"]), dtype="float32")
    scores = reward(PROMPTS[:1], rollouts(["fine", "\ud800"]))
    assert scores[0, 0].isfinite() and scores[0, 1].isnan() and "can't be written as tokens" in reward.last_failure


def test_a_model_that_overflows_gives_no_grade(folders, tmp_path):
    folder = Path(shutil.copytree(folders["a padding token"], tmp_path / "loud"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.score.weight.data.mul_(1e38)
    model.save_pretrained(folder)
    reward = ModelReward(str(folder), dtype="float32", scale=1e9)
    assert reward(PROMPTS, rollouts(*TEXTS)).isnan().all() and "the reward model gave" in reward.last_failure


def test_it_is_freed_when_it_is_closed_and_leaves_the_random_state(folders):
    reward = ModelReward(str(folders["a padding token"]), dtype="float32")
    before = torch.random.get_rng_state()
    reward.check()
    scores = reward(PROMPTS, rollouts(*TEXTS))
    assert torch.random.get_rng_state().equal(before)
    model = weakref.ref(reward._loaded[0].model)
    reward.close()
    gc.collect()
    assert model() is None
    assert reward(PROMPTS, rollouts(*TEXTS)).equal(scores)


def without(folder: Path, to: Path, *files: str) -> str:
    return str(shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*files)))


def refused(path: str, **settings) -> str:
    with pytest.raises(InputError) as refusal:
        reward = ModelReward(path, **settings)
        reward.check()
        reward.require(PROMPTS)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_the_door_refuses_what_is_no_reward_model(folders, policy, tmp_path):
    good = folders["a padding token"]
    assert refused(str(policy)) == (
        f"ModelReward.path '{policy}' is Qwen2ForCausalLM, which has no head that scores; write a model whose config.json "
        "names a class that ends in ForSequenceClassification"
    )
    assert "is no folder; write an HF folder" in refused(str(tmp_path / "nowhere"))
    assert "has no config.json" in refused(without(good, tmp_path / "a", "config.json"))
    assert "has no .safetensors file" in refused(without(good, tmp_path / "b", "*.safetensors"))
    assert "has no tokenizer" in refused(without(good, tmp_path / "c", "tokenizer*"))
    assert "has no chat template; name a Jinja file" in refused(without(good, tmp_path / "d", "chat_template*"))
    adapter = without(good, tmp_path / "e")
    Path(adapter, "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    assert "holds an adapter; merge it" in refused(adapter)
    assert "beyond the context of" in refused(str(good), max_tokens=4000)
    assert "device is 'cuda:77'" in refused(str(good), device="cuda:77")
    assert "device is 'gpu'" in refused(str(good), device="gpu")
    three = str(folders["three labels"])
    assert "has 3 labels: bad, fair, good; name the one that is the grade" in refused(three)
    assert "label is 3, and" in refused(three, label=3) and "did you mean 'good'" in refused(three, label="god")
    template = tmp_path / "strict.jinja"
    template.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x")
    assert "fails for the prompt 'p': no system role" in refused(str(good), template=str(template))


def test_a_head_that_is_not_in_the_file_is_not_made_up(policy, folders, tmp_path):
    """Otherwise transformers would fill it with random numbers: the config says that there is one."""
    folder = Path(without(folders["a padding token"], tmp_path / "headless", "*.safetensors"))
    for file in Path(policy).glob("*.safetensors"):
        shutil.copy(file, folder)
    assert "is not one model: its weights lack score.weight" in refused(str(folder))


def test_code_in_the_folder_is_not_run(folders, tmp_path):
    folder = Path(without(folders["a padding token"], tmp_path / "coded"))
    text = (folder / "config.json").read_text()
    auto = '"auto_map": {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}, "model_type"'
    (folder / "config.json").write_text(text.replace('"model_type"', auto, 1).replace('"qwen2"', '"unheard_of"'))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(str(folder))
    assert not (tmp_path / "ran").exists()
