"""Prompts become token ids through a real tokenizer with a template of each awkward kind."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from saerl_lightning.errors import InputError
from saerl_lightning.prompts import chat as chats
from saerl_lightning.prompts.chat import ChatTemplate, TokenIds
from saerl_lightning.records import Prompt

WORDS = ["<unk>", "<s>", "user", "system", "assistant", "hi", "be", "brief"]
TEMPLATE = (
    "<s> {% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One token a word; the tokenizer itself puts <s> in front, as Llama's does."""
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    model.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", unk_token="<unk>", chat_template=template, name_or_path="toy"
    )


def prompt(*messages: tuple[str, str]) -> Prompt:
    return Prompt("u", tuple({"role": role, "content": content} for role, content in messages), "1")


def words(ids: list[int]) -> str:
    return " ".join(WORDS[i] for i in ids)


@pytest.mark.parametrize("template", [TEMPLATE, "<s> " + TEMPLATE, "{{ bos_token }} " * 2 + TEMPLATE])
def test_exactly_one_bos(template):
    [ids] = ChatTemplate().encode([prompt(("user", "hi"))], tokenizer(template))
    assert words(ids) == "<s> user hi assistant"


def test_a_template_without_bos_gets_none():
    [ids] = ChatTemplate().encode([prompt(("user", "hi"))], tokenizer(TEMPLATE.removeprefix("<s> ")))
    assert words(ids) == "user hi assistant"


def test_the_system_prompt_yields_to_the_prompts_own():
    chat = ChatTemplate(system="be brief")
    ids = chat.encode([prompt(("user", "hi")), prompt(("system", "hi"), ("user", "hi"))], tokenizer(TEMPLATE))
    assert [words(row) for row in ids] == ["<s> system be brief user hi assistant", "<s> system hi user hi assistant"]


def test_too_long_prompts_are_named_not_cut():
    chat = ChatTemplate(max_prompt_tokens=5)
    ids = chat.encode([prompt(("user", "hi")), prompt(("user", "hi hi hi"))], tokenizer(TEMPLATE))
    assert [len(row) for row in ids] == [4, 6]
    assert chat.too_long(ids) == {1: "longer than max_prompt_tokens 5"}


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="'toy' has no chat template"):
        ChatTemplate().encode([prompt(("user", "hi"))], tokenizer(None))
    with pytest.raises(InputError, match="refuses the messages: no system here"):
        strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE
        ChatTemplate(system="be brief").encode([prompt(("user", "hi"))], tokenizer(strict))
    # A template that fails for another reason is not said to miss a system role.
    with pytest.raises(InputError, match=r"refuses the messages: never; correct it, or name another$"):
        ChatTemplate().encode([prompt(("user", "hi"))], tokenizer("{{ raise_exception('never') }}"))
    with pytest.raises(InputError, match="max_prompt_tokens is 0"):
        ChatTemplate(max_prompt_tokens=0)


def test_a_template_file_replaces_the_tokenizers_own_and_takes_options(tmp_path):
    (tmp_path / "own.jinja").write_text("{% if loud %}hi {% endif %}{{ messages[0].content }} assistant")
    chat = ChatTemplate(template=str(tmp_path / "own.jinja"), options={"loud": True})
    [ids] = chat.encode([prompt(("user", "brief"))], chat.fitted(tokenizer(TEMPLATE)))
    assert words(ids) == "hi brief assistant"
    with pytest.raises(InputError, match=r"the chat template 'nowhere\.jinja' can't be read"):
        ChatTemplate(template="nowhere.jinja").fitted(tokenizer(None))
    (tmp_path / "broken.jinja").write_text("{% if %}")
    broken = ChatTemplate(template=str(tmp_path / "broken.jinja"))
    with pytest.raises(InputError, match=r"the chat template in '.*broken.jinja' is no Jinja, line 1: .*; correct it"):
        broken.encode([prompt(("user", "hi"))], broken.fitted(tokenizer(None)))
    with pytest.raises(InputError, match="options names 'add_generation_prompt', which is a setting"):
        ChatTemplate(options={"add_generation_prompt": False}).encode([prompt(("user", "hi"))], tokenizer(TEMPLATE))


def test_a_prefill_stands_behind_the_generation_prompt():
    [ids] = ChatTemplate(prefill=" be").encode([prompt(("user", "hi"))], tokenizer(TEMPLATE))
    assert words(ids) == "<s> user hi assistant be"


def test_many_prompts_are_encoded_in_parts_and_held_in_one_array(monkeypatch):
    monkeypatch.setattr(chats, "CHUNK", 2)
    prompts = [prompt(("user", "hi " * (1 + n % 3))) for n in range(5)]
    alone = [ChatTemplate().encode([each], tokenizer(TEMPLATE))[0] for each in prompts]
    held = TokenIds(ChatTemplate().stream(prompts, tokenizer(TEMPLATE)))
    assert list(held) == [held[row] for row in range(5)] == alone and len(held) == 5
    assert {len(each) for each in alone} == {len(alone[0]), len(alone[1]), len(alone[2])} and len(alone[0]) < len(
        alone[1]
    )
    with pytest.raises(IndexError):
        held[5]
    assert list(TokenIds([])) == []
