"""The model whose hidden states are read: its settings, loading up to one layer, tokenizing, and its residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saerl_lightning import hub
from saerl_lightning.errors import InputError, first_line
from saerl_lightning.prompts.chat import one_bos
from saerl_lightning.ranges import CountFrom0, require_in_range
from saerl_lightning.records import Prompt
from saerl_lightning.whole_weights import load_causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def middle_layer(layers: int) -> int:
    """Returns the default layer for signals: half of the depth, counted from 0."""
    return layers // 2


def truncate(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """Cuts the decoder after a layer. Later layers, the final norm and the head are not run.

    `model` itself is changed, and shares its weights with the result.

    Args:
        model: Causal language model whose decoder has `layers` and a final `norm` (Llama, Qwen, Gemma, ...). Of a
            multimodal model, the text decoder is used.
        layer: Last layer that is run, from 0. Its output is TransformerLens' `blocks.<layer>.hook_resid_post`.

    Returns:
        The decoder, whose output is the residual stream after `layer`.

    Raises:
        InputError: if the model does not have the layer, or has no `layers` and `norm`.
    """
    decoder: Any = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None or not hasattr(decoder, "norm"):
        raise InputError(
            f"{type(model).__name__} has no `layers` and `norm` to cut at; use a Llama-like model (Llama, Qwen, Gemma)"
        )
    if not 0 <= layer < len(layers):
        raise InputError(f"layer is {layer}, but the model has layers 0 to {len(layers) - 1}; write one of them")
    decoder.layers = layers[: layer + 1]
    # Some decoders loop over this number and not over the list of layers.
    decoder.config.num_hidden_layers = layer + 1
    decoder.norm = nn.Identity()
    return decoder


@torch.inference_mode()
def residual_stream(
    decoder: PreTrainedModel, tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T d"]:
    """Runs a truncated decoder over right-padded rows.

    Args:
        decoder: Decoder cut by `truncate`.
        tokens: Token ids, right-padded.
        mask: True for real tokens, false for padding at the end of a row.

    Returns:
        The residual stream. Values at padding positions are meaningless.
    """
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return decoder(
        input_ids=tokens, attention_mask=mask.long(), position_ids=positions, use_cache=False
    ).last_hidden_state


@contextmanager
def replaced_output(
    model: PreTrainedModel,
    layer: int,
    replace: Callable[[Float[Tensor, "B t d"], Mapping[str, Any]], Float[Tensor, "B t d"]],
) -> Iterator[None]:
    """Replaces the output of a layer in every forward pass inside the block.

    Args:
        model: Complete causal language model.
        layer: Layer whose output is replaced, from 0.
        replace: Function that returns the new residual stream, given the old one and the layer's keyword arguments.

    Raises:
        InputError: if the model does not have the layer.
    """

    def hook(_module: Any, _inputs: Any, given: Mapping[str, Any], output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output  # transformers' layers return either
        made = replace(stream, given)
        return (made, *output[1:]) if isinstance(output, tuple) else made

    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None or not 0 <= layer < len(layers):
        have = "no `layers`" if layers is None else f"layers 0 to {len(layers) - 1}"
        raise InputError(f"layer is {layer}, but {type(model).__name__} has {have}; write one that it has")
    handle = layers[layer].register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def pooled_positions(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Returns the positions that are trained on and pooled: all real tokens but the first of each row.

    In most models the first position is an attention sink, with a norm about a hundred times that of other positions
    (Sun et al., arXiv 2402.17762).
    """
    kept = mask.clone()
    kept[:, 0] = False
    return kept


@dataclass(frozen=True)
class ReadModel:
    """A causal language model whose hidden states are read. It is not trained, and need not be the policy.

    Args:
        path: Local HF folder, or name on the hub.
        layer: Layer whose output is read, from 0; null takes the middle layer.
        dtype: Data type of the weights while reading.
        device: Device that the model runs on; null takes the first accelerator, or else the CPU.
        trust_remote_code: Whether to run code that comes with the model.
    """

    path: str
    layer: CountFrom0 | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuses a layer below 0."""
        require_in_range(self)

    @property
    def name(self) -> str:
        """The model's short name: the last part of its path, in lower case."""
        return Path(self.path).name.lower()

    def config(self) -> tuple[int, int, int]:
        """Returns the layer that is read, the number of layers and the width of the stream, without loading weights.

        Raises:
            InputError: if the model does not exist, or does not have the layer.
        """
        from transformers import AutoConfig

        hub.look_up(self.path)
        try:
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:
            raise InputError(f"no model could be read at '{self.path}': {_why(error, self.path)}") from error
        text = config.get_text_config()  # of a multimodal model, the part that reads text
        layers, width = text.num_hidden_layers, text.hidden_size
        layer = middle_layer(layers) if self.layer is None else self.layer
        if not 0 <= layer < layers:
            raise InputError(f"layer is {layer}, but '{self.path}' has layers 0 to {layers - 1}; write one of them")
        return layer, layers, width

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Loads the decoder, cut after the layer and in evaluation mode, and the tokenizer.

        Raises:
            InputError: if either can't be loaded, or the model does not have the layer.
        """
        layer, _, _ = self.config()
        decoder = truncate(self.load_whole(), layer)
        return decoder, self.load_tokenizer()

    def load_whole(self) -> PreTrainedModel:
        """Loads the complete model with its head, in evaluation mode.

        Raises:
            InputError: if the model can't be loaded, or its weights are incomplete or not finite.
        """
        model = load_causal_lm(
            self.path, "model.path", dtype=getattr(torch, self.dtype), trust_remote_code=self.trust_remote_code
        )
        model.to(self.place)  # pyright: ignore[reportArgumentType]  # the stub takes `self` for an argument
        return model.eval().requires_grad_(False)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer from the model's folder.

        Raises:
            InputError: if there is no tokenizer.
        """
        from transformers import AutoTokenizer

        hub.look_up(self.path)
        try:
            return AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:
            raise InputError(f"no tokenizer could be loaded from '{self.path}': {_why(error, self.path)}") from error

    @property
    def place(self) -> torch.device:
        """The device that the model runs on."""
        if self.device is not None:
            return torch.device(self.device)
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")


def _why(error: Exception, path: str) -> str:
    return first_line(error) + hub.advice(path)


def encode(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_tokens: int = 1024, chat: bool = True
) -> list[list[int]]:
    """Tokenizes prompts with the chat template, up to the start of the assistant's answer.

    Without a chat template (base models), `Prompt.text` is tokenized, with the tokenizer's own special tokens.

    Args:
        prompts: Prompts to tokenize.
        tokenizer: Tokenizer of the model that reads the prompts.
        max_tokens: Maximum number of tokens per prompt. Longer prompts are cut at the end.
        chat: Whether to apply the chat template where there is one.

    Returns:
        One list of token ids per prompt, with at most one BOS token at the start.

    Raises:
        InputError: if `max_tokens` is below 1, or the chat template refuses a prompt's messages.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; write 1 or more")
    if not prompts:
        return []
    if tokenizer.chat_template is None or not chat:
        ids = tokenizer([prompt.text for prompt in prompts])["input_ids"]
    else:
        ids = _chats(prompts, tokenizer)
    return [one_bos(row, tokenizer.bos_token_id)[:max_tokens] for row in ids]  # type: ignore[union-attr]


def _chats(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> Sequence[Sequence[int]]:
    from jinja2.exceptions import TemplateError

    chats = [[dict(message) for message in prompt.messages] for prompt in prompts]
    try:
        encoded = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)
    except TemplateError as error:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path!r} refuses the messages: {error}; "
            f"take out the roles that it does not know"
        ) from error
    return encoded["input_ids"]  # type: ignore[index,return-value]
