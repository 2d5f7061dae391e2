"""ModelReward: the score that a reward model, a sequence classifier, gives to a prompt and its completion."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saerl_lightning import hub
from saerl_lightning.errors import InputError, first_line
from saerl_lightning.files import read_text
from saerl_lightning.ranges import Count, CountFrom0, Finite, require_in_range
from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.classifier import Classifier, Output, label_index
from saerl_lightning.reward.failures import Failures
from saerl_lightning.reward.reward import Reward
from saerl_lightning.whole_weights import load_classifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEAD = "ForSequenceClassification"  # ends the names of transformers' classes with such a head


class ModelReward(Reward):
    """Gives the score of a reward model: a sequence classifier of transformers.

    The reward model reads the prompt's messages and the completion as its own tokenizer's chat template writes them; a
    system message that `data.chat.system` adds for the policy is not among them. It is loaded from safetensors alone,
    and without code of its folder, before the first step, and freed at the end of the run.

    Every process of a run holds a copy on its device, for the whole run: weights of 2 bytes a parameter in bfloat16
    (16 GB for 8B), and the activations of `batch_tokens` tokens, which are small. It was tried on a CPU and never on a
    GPU, so try a step first. A chat template writes a completion as it is: a policy may learn to write the
    reward model's own role marks.

    Args:
        path: HF folder, or name on the hub.
        label: Class that is the grade, by index or name; null takes the only one.
        output: Whether to give the `logit` of the label or its `probability` (a sigmoid where there is one label, else
            a softmax over all).
        shift: Number that is subtracted from the output.
        scale: Factor of what remains: the grade is scale * (output - shift).
        max_tokens: Largest length of prompt and completion, in the reward model's tokens; null takes its context.
        too_long: What becomes of longer ones: `fail` gives no grade (NaN), `left` cuts off the beginning and `right` the
            end.
        batch_tokens: Largest number of tokens that are scored at once, padding included.
        template: Jinja file of a chat template in place of the tokenizer's own; null keeps that.
        dtype: Floating-point type of the weights. Logits of bfloat16 have 3 significant digits.
        device: Device of the reward model, as cpu or cuda:1; null takes the GPU of the process, or else the CPU.
        attention: Name of transformers' attention implementation.
        weight: Weight of the reward in the weighted sum.
        name: Name of this reward in the logs; null takes the class's.

    Raises:
        InputError: if there is no such model, or it has no head that scores.
    """

    def __init__(
        self,
        path: str,
        label: CountFrom0 | str | None = None,
        output: Output = "logit",
        shift: Finite = 0.0,
        scale: Finite = 1.0,
        max_tokens: Count | None = None,
        too_long: Literal["fail", "left", "right"] = "fail",
        batch_tokens: Count = 16_384,
        template: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
        device: str | None = None,
        attention: str = "sdpa",
        weight: Finite = 1.0,
        name: str | None = None,
    ) -> None:
        self.path = path
        self.label = label
        self.output: Output = output
        self.shift = shift
        self.scale = scale
        self.max_tokens = max_tokens
        self.too_long = too_long
        self.batch_tokens = batch_tokens
        self.template = template
        self.dtype = dtype
        self.device = device
        self.attention = attention
        self.weight = weight
        self._name = name
        self._loaded: tuple[Classifier, PreTrainedTokenizerBase, int] | None = None  # and the largest length
        self._place: torch.device | None = None  # of the process, found by its main thread
        self.failures = Failures()
        require_in_range(self)

    @property
    def last_failure(self) -> str:
        """Reason of the last NaN."""
        return self.failures.last

    def check(self) -> None:
        """Reads the reward model's configuration and tokenizer, without its weights.

        Raises:
            InputError: if there is no classifier, no such label, no chat template, no such device, or no room for
                `max_tokens`.
        """
        config = self._config()
        label_index(config, self.label, self.path)
        self._longest(config)
        self._tokenizer()
        if self.device is not None:
            _device(self.device)

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Loads the reward model, and writes every prompt once as its chat template does.

        Raises:
            InputError: if its weights are not whole, or the chat template refuses a prompt, with its id.
        """
        _, tokenizer, _ = self._ready()
        for prompt in prompts:
            try:
                _written(tokenizer, prompt, "")
            except Exception as error:  # a template may raise anything
                raise InputError(
                    f"the chat template of ModelReward.path '{self.path}' fails for the prompt {prompt.uid!r}: {error}; name "
                    "a file as ModelReward.template"
                ) from error

    def __call__(self, prompts: Sequence[Prompt], rollouts: Rollouts) -> Float[Tensor, "P G"]:
        """Scores every completion."""
        classifier, tokenizer, longest = self._ready()
        asked = [prompts[row // rollouts.group_size] for row in range(len(rollouts.texts))]  # R
        rows = [
            self._tokens(tokenizer, prompt, text, longest) for prompt, text in zip(asked, rollouts.texts, strict=True)
        ]
        kept = [row for row, tokens in enumerate(rows) if tokens]
        outputs = classifier.scores([rows[row] for row in kept], self.output) if kept else torch.empty(0)
        scores = torch.full((len(rows),), math.nan)
        scores[kept] = self.scale * (outputs - self.shift)
        for row in (~scores[kept].isfinite()).nonzero().flatten().tolist():
            self._failed(f"the reward model gave {float(outputs[row]):g}", asked[kept[row]], rollouts.texts[kept[row]])
        scores[scores.isinf()] = math.nan
        return scores.to(rollouts.mask.device).view(len(prompts), rollouts.group_size)

    def close(self) -> None:
        """Frees the reward model. Grading again loads it again."""
        if self._loaded is not None:
            self._loaded = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _ready(self) -> tuple[Classifier, PreTrainedTokenizerBase, int]:
        """The reward model, which is loaded where it is not."""
        if self._loaded is None:
            config, tokenizer = self._config(), self._tokenizer()
            label, longest = label_index(config, self.label, self.path), self._longest(config)
            self._place = self._place or _device(self.device)
            settings = {"dtype": getattr(torch, self.dtype), "attn_implementation": self.attention}
            with torch.random.fork_rng(devices=[]):
                model: Any = load_classifier(self.path, "ModelReward.path", **settings)
            self._loaded = Classifier(model.to(self._place), label, self.batch_tokens), tokenizer, longest
        return self._loaded

    def _config(self) -> Any:
        from transformers import AutoConfig

        _require_folder(self.path)
        hub.look_up(self.path)
        try:
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise InputError(f"no reward model could be loaded from '{self.path}': {self._why(error)}") from error
        made = (config.architectures or ["a model of no class"])[0]
        if not made.endswith(HEAD):
            raise InputError(
                f"ModelReward.path '{self.path}' is {made}, which has no head that scores; write a model whose config.json "
                f"names a class that ends in {HEAD}"
            )
        return config

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises plain ones for a damaged file
            raise InputError(f"ModelReward.path '{self.path}' has no tokenizer: {self._why(error)}") from error
        if self.template is not None:
            tokenizer.chat_template = read_text(self.template, "the reward model's chat template")
        if tokenizer.chat_template is None:
            raise InputError(
                f"the tokenizer of ModelReward.path '{self.path}' has no chat template; name a Jinja file as "
                "ModelReward.template"
            )
        return tokenizer

    def _longest(self, config: Any) -> int:
        """The largest length of a row."""
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        if context and self.max_tokens and self.max_tokens > context:
            raise InputError(
                f"ModelReward.max_tokens is {self.max_tokens}, beyond the context of '{self.path}', {context}; write at "
                f"most {context}"
            )
        return self.max_tokens or context or 2**31

    def _tokens(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, text: str, longest: int) -> list[int]:
        """The row of a completion; empty if it can't be graded."""
        try:
            tokens = list(tokenizer(_written(tokenizer, prompt, text), add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
        except Exception as error:  # a template may raise anything, and tokenizers take no lone surrogates
            self._failed(
                f"it can't be written as tokens: {type(error).__name__}: {first_line(error)[:200]}", prompt, text
            )
            return []
        if len(tokens) <= longest:
            return tokens
        if self.too_long == "fail":
            self._failed(f"its {len(tokens)} tokens, prompt included, are beyond {longest}", prompt, text)
            return []
        return tokens[-longest:] if self.too_long == "left" else tokens[:longest]

    def _failed(self, why: str, prompt: Prompt, text: str) -> None:
        self.failures.note("a completion", f"was not graded: {why}", prompt.uid, text)

    def _why(self, error: Exception) -> str:
        return first_line(error) + hub.advice(self.path)


def _written(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: str) -> str:
    """Prompt and completion as the reward model reads them."""
    chat = [*map(dict, prompt.messages), {"role": "assistant", "content": completion}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False))


def _require_folder(path: str) -> None:
    """Refuses local folders that hold no whole model; what is no folder may be a name on the hub."""
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or path.startswith(".") or path.count("/") != 1 or folder.parent.is_dir():
            raise InputError(f"ModelReward.path '{path}' is no folder; write an HF folder or a hub name (owner/model)")
        return
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"ModelReward.path '{path}' holds an adapter; merge it into its model, and save that")
    if not (folder / "config.json").is_file():
        raise InputError(f"ModelReward.path '{path}' has no config.json, so it holds no model")
    # Without it, transformers would make an empty tokenizer of the model's kind.
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(f"ModelReward.path '{path}' has no tokenizer; save it there with tokenizer.save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"ModelReward.path '{path}' has no .safetensors file; save the model with save_pretrained")


def _device(name: str | None) -> torch.device:
    """The device of a name; by default the GPU that the process uses."""
    if name is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(f"ModelReward.device is {name!r}: {first_line(error)}; write cpu, cuda or cuda:1") from error
    return device
