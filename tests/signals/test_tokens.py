"""What a read model sees of a prompt: the chat template where there is one, the plain text elsewhere."""

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.records import Prompt
from saerl_lightning.signals.model import encode

PROMPT = Prompt("p", ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is two?"}), "2")


@pytest.fixture
def tokenizer(tiny):
    return tiny.model.load_tokenizer()


def test_the_template_is_applied_up_to_where_the_assistant_begins(tokenizer):
    (ids,) = encode([PROMPT], tokenizer)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is two?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_base_model_reads_the_users_words_with_one_bos(tokenizer):
    tokenizer.chat_template = None
    assert tokenizer.decode(encode([PROMPT], tokenizer)[0]) == "What is two?"
    tokenizer.bos_token = "<|im_start|>"  # and now one that the text brings along, twice
    doubled = Prompt.asking("p", "<|im_start|><|im_start|>two", "2")
    assert tokenizer.decode(encode([doubled], tokenizer)[0]) == "<|im_start|>two"


def test_long_prompts_lose_their_end(tokenizer):
    whole, cut = encode([PROMPT], tokenizer)[0], encode([PROMPT], tokenizer, max_tokens=7)[0]
    assert cut == whole[:7] and len(whole) > 7
    assert encode([], tokenizer) == []
    with pytest.raises(InputError, match="max_tokens is 0"):
        encode([PROMPT], tokenizer, max_tokens=0)


def test_a_template_that_refuses_a_role_is_named(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    with pytest.raises(InputError, match="refuses the messages: no system role here"):
        encode([PROMPT], tokenizer)
