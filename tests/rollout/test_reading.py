"""What graders read of a completion, by hand, under the chat templates of several families."""

from __future__ import annotations

import pytest

from saerl_lightning.prompts.chat import ChatTemplate
from saerl_lightning.records import Prompt, Sampling
from saerl_lightning.reward.format import FormatReward
from saerl_lightning.rollout.completion import Reader
from saerl_lightning.rollout.hf import HFEngine
from saerl_lightning.rollout.scripted import ScriptedEngine

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
SPECIAL = ["<|bos|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "[INST]", "[/INST]"]
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
GENERATE = "{% if add_generation_prompt %}"
END = "{% endif %}"
PREFILLED = TURNS + GENERATE + "<|im_start|>assistant\n<think>\n" + END
LLAMA = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>{% endfor %}"
    + GENERATE
)
EMPTY_THOUGHTS = (  # written into former answers
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think></think>{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}" + GENERATE
)
TEMPLATES = {
    "chatml": (TURNS + GENERATE + "<|im_start|>assistant\n" + END, ""),
    "thought opened": (PREFILLED, "<think>\n"),
    "thought closed": (
        TURNS + GENERATE + "<|im_start|>assistant\n<think>\n\n</think>\n\n" + END,
        "<think>\n\n</think>\n\n",
    ),
    "former answers have empty thoughts": (EMPTY_THOUGHTS + "<|im_start|>assistant\n<think>\n" + END, "<think>\n"),
    "headers": (LLAMA + "<|start_header_id|>assistant<|end_header_id|>\n\n<answer>" + END, "<answer>"),
    "another name for the role": (
        "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] }}\n{% endfor %}" + GENERATE + "<start_of_turn>model\nLet us see. " + END,
        "Let us see. ",
    ),
    "a mark behind the question": (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
        " {{ m['content'] }}<|eot_id|>{% endif %}{% endfor %}",
        "",
    ),
    "one question only": (
        "{% if messages|length > 1 %}{{ raise_exception('no') }}{% endif %}{{ messages[0]['content'] }}",
        "",
    ),
    "depends on the question": (
        TURNS + GENERATE + "<|im_start|>assistant\n{% if 'hard' in messages[-1]['content'] %}<think>{% endif %}" + END,
        "",
    ),
}


@pytest.fixture
def tokenizer(load_tiny):
    made = load_tiny()[1]
    made.add_special_tokens({"additional_special_tokens": TAGS + SPECIAL, "bos_token": "<|bos|>"})
    return made


def ends(tokenizer):
    return [tokenizer.eos_token_id]


def asked(tokenizer, text="How much is 2 + 2?"):
    return ChatTemplate().encode([Prompt.asking("a", text, "4")], tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_generation_prompt_opened_stands_before_the_completion(tokenizer, name):
    tokenizer.chat_template, opening = TEMPLATES[name]
    completion = tokenizer.encode("so 4</think><answer>4</answer>", add_special_tokens=False)
    reader = Reader(tokenizer, ends(tokenizer))
    read = reader.texts(asked(tokenizer), [[*completion, tokenizer.eos_token_id], completion[:2]])
    assert read[0] == opening + "so 4</think><answer>4</answer>"
    assert read[1].startswith(opening)


def test_an_opening_that_depends_on_the_question_is_read_with_it(tokenizer):
    tokenizer.chat_template = TEMPLATES["depends on the question"][0]
    prompts = asked(tokenizer) + asked(tokenizer, "A hard one: 2 + 2?")
    assert Reader(tokenizer, ends(tokenizer)).texts(prompts, [[], [], [], []]) == ["", "", "<think>", "<think>"]


def test_only_padding_ends_and_the_beginning_are_left_out(tokenizer):
    text = "<|bos|>a<think>b<|im_start|>c<|endoftext|><|eot_id|><|im_end|>"
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.pad_token_id]
    reader = Reader(tokenizer, [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")])
    assert reader.texts([[5]], [ids]) == ["a<think>b<|im_start|>c"]


def test_a_perfect_completion_of_an_opened_thought_earns_its_format(load_tiny, tokenizer):
    model = load_tiny()[0]
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.chat_template = PREFILLED
    form = FormatReward(r"<think>.+</think>\s*<answer>.+</answer>", whole=True)
    with ScriptedEngine(["2 and 2</think><answer>4</answer>", "<answer>4</answer>"]) as engine:
        engine.start(model, tokenizer, 512)
        rollouts = engine.generate(asked(tokenizer), Sampling(group_size=2, max_tokens=64))
    prompt = Prompt.asking("a", "?", "4")
    assert form([prompt], rollouts).tolist() == [[1.0, 0.0]]


def test_a_stop_text_may_be_a_special_token(load_tiny):
    """The random policy writes `<|im_start|>` now and then."""
    model, tokenizer = load_tiny()
    with HFEngine() as engine:
        engine.start(model, tokenizer, 512)
        sampling = Sampling(group_size=64, max_tokens=64, stop=("<|im_start|>",))
        rollouts = engine.generate(asked(tokenizer), sampling)
    stopped = [text for text in rollouts.texts if "<|im_start|>" in text]
    assert stopped
    assert all(text.endswith("<|im_start|>") for text in stopped)
