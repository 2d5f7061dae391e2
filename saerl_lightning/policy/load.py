"""Loads the policy and its tokenizer from an HF folder or hub name; adds LoRA adapters; sets dtype and attention.

Only transformers' own architectures are loaded. Code in a model folder runs only with `trust_remote_code`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch

from saerl_lightning import hub
from saerl_lightning.errors import InputError, first_line
from saerl_lightning.ranges import Count, Range, ShareBelow1, require_in_range
from saerl_lightning.whole_weights import load_causal_lm

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rank = Annotated[int, Range(1, 65_536)]


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv 2106.09685), trained in place of the full weights.

    Args:
        rank: Rank of the two factors of each adapter.
        alpha: Scale of the adapters: their output is multiplied by alpha / rank.
        dropout: Dropout rate on the adapters' input. For SFTModule only: GRPOModule must score the policy that sampled.
        targets: Names of the modules that get an adapter; "all-linear" adapts every linear layer except the output
            head.
    """

    rank: Rank = 16
    alpha: Count = 32
    dropout: ShareBelow1 = 0.0
    targets: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        """Refuses numbers that are out of range."""
        require_in_range(self)


@dataclass(frozen=True)
class Policy:
    """A causal language model to train.

    Args:
        path: HF folder, or name on the hub.
        dtype: Floating-point type of the weights.
        lora: Adapters that are trained instead of all weights; null trains all weights.
        gradient_checkpointing: Whether activations are computed again in the backward pass, to save memory.
        attention: Name of transformers' attention implementation.
        trust_remote_code: Whether code in the model folder may run.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoRA | None = None
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuses a path that is none, and adapters that are none."""
        require_in_range(self)

    def load_model(self) -> PreTrainedModel:
        """Loads the model in evaluation mode, with adapters if `lora` is set.

        Raises:
            InputError: if there is no model at `path`, or if its weights are incomplete or not finite.
        """
        self._check_folder("config.json", "a model (an HF folder has one)")
        model = load_causal_lm(
            self.path,
            "policy.path",
            dtype=getattr(torch, self.dtype),
            attn_implementation=self.attention,
            trust_remote_code=self.trust_remote_code,
        )
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return self.with_adapters(model) if self.lora else model

    def build(self) -> PreTrainedModel:
        """Builds the model by its configuration, with weights that are not set, and without adapters."""
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        config = AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        settings = {"dtype": getattr(torch, self.dtype), "attn_implementation": self.attention}
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code, **settings)
        with suppress(OSError):  # there is none
            model.generation_config = GenerationConfig.from_pretrained(self.path)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    def with_adapters(self, model: PreTrainedModel) -> PreTrainedModel:
        """Adds new adapters to the model.

        Args:
            model: Model without adapters.

        Raises:
            InputError: if no layer has the name of a target.
        """
        from peft import LoraConfig, get_peft_model

        assert self.lora is not None
        config = LoraConfig(
            r=self.lora.rank,
            lora_alpha=self.lora.alpha,
            lora_dropout=self.lora.dropout,
            target_modules=self.lora.targets,
            task_type="CAUSAL_LM",
        )
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise InputError(_no_targets(self.lora.targets, model)) from error
        if self.gradient_checkpointing:
            # Checkpointed layers get a gradient only if their input requires one; frozen embeddings give none.
            adapted.enable_input_require_grads()
        return adapted  # pyright: ignore[reportReturnType]  # a PeftModel forwards to the model it wraps

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer from the model's folder.

        Raises:
            InputError: if there is no tokenizer, or if it has no chat template.
        """
        from transformers import AutoTokenizer

        self._check_folder("tokenizer_config.json", "a tokenizer (save it there with tokenizer.save_pretrained)")
        hub.look_up(self.path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        # The tokenizers library raises plain Exceptions for a damaged tokenizer.json.
        except Exception as error:
            raise InputError(
                f"no tokenizer could be loaded from policy.path '{self.path}': {_why(error, self.path)}"
            ) from error
        if tokenizer.chat_template is None:
            raise InputError(
                f"the tokenizer of '{self.path}' has no chat template; add chat_template.jinja to the folder"
            )
        return tokenizer

    def _check_folder(self, file: str, what: str) -> None:
        folder = Path(self.path)
        looks_local = folder.is_absolute() or self.path.startswith(".") or self.path.count("/") != 1
        if not folder.is_dir() and (looks_local or folder.parent.is_dir()):
            raise InputError(f"policy.path '{self.path}' is no folder; write an HF folder or a hub name (owner/model)")
        if folder.is_dir() and not (folder / file).is_file():
            raise InputError(f"policy.path '{self.path}' has no {file}, so it holds no {what.removeprefix('a ')}")


def _why(error: Exception, path: str) -> str:
    return first_line(error) + hub.advice(path)


def _no_targets(targets: str | list[str], model: PreTrainedModel) -> str:
    layers = {name.rpartition(".")[2] for name, each in model.named_modules() if isinstance(each, torch.nn.Linear)}
    return (
        f"policy.lora.targets is {targets!r}, which no layer is called; write all-linear, or some of {sorted(layers)}"
    )
