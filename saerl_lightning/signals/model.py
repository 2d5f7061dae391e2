"""The model whose internals are read: an HF folder or hub name, loaded up to one layer, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from saerl_lightning import hub
from saerl_lightning.errors import InputError
from saerl_lightning.ranges import CountFrom0, require_in_range
from saerl_lightning.signals.activations import middle_layer, truncate
from saerl_lightning.whole_weights import load_causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ReadModel:
    """A causal language model that is read, not trained. It need not be the policy.

    Args:
        path: HF folder, or a name on the hub.
        layer: residual stream that is read, from 0: the output of this layer; null takes the middle one.
        dtype: of the weights while reading.
        device: where it runs; null takes the first accelerator, or else the CPU.
        trust_remote_code: run code that the model folder brings along.
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
        """The model's own name: the last part of its path, in small letters."""
        return Path(self.path).name.lower()

    def config(self) -> tuple[int, int, int]:
        """Layer that is read, number of layers and width of the stream, without loading weights.

        Raises:
            InputError: if there is no such model, or it has no such layer.
        """
        from transformers import AutoConfig

        hub.look_up(self.path)
        try:
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:
            raise InputError(f"no model could be read at '{self.path}': {_why(error, self.path)}") from error
        text = config.get_text_config()  # of a model that sees pictures too, the part that reads text
        layers, width = text.num_hidden_layers, text.hidden_size
        layer = middle_layer(layers) if self.layer is None else self.layer
        if not 0 <= layer < layers:
            raise InputError(f"layer is {layer}, but '{self.path}' has layers 0 to {layers - 1}; write one of them")
        return layer, layers, width

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Loads the decoder, cut behind the layer, in evaluation mode, and the tokenizer.

        Raises:
            InputError: if either can't be loaded, or the layer is out of range.
        """
        layer, _, _ = self.config()
        decoder = truncate(self.load_whole(), layer)
        return decoder, self.load_tokenizer()

    def load_whole(self) -> PreTrainedModel:
        """Loads the whole model in evaluation mode, head and all.

        Raises:
            InputError: if it can't be loaded, or is not whole.
        """
        model = load_causal_lm(
            self.path, "model.path", dtype=getattr(torch, self.dtype), trust_remote_code=self.trust_remote_code
        )
        model.to(self.place)  # pyright: ignore[reportArgumentType]  # its stub takes self for an argument
        return model.eval().requires_grad_(False)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer that lies beside the model.

        Raises:
            InputError: if there is none.
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
    return str(error).strip().split("\n")[0] + hub.advice(path)
