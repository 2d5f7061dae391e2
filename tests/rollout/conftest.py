"""One small random policy on disk, shared by the tests of all engines; each test loads its own copy."""

from pathlib import Path

import pytest
import torch

from saerl_lightning.assets.tiny import build_tiny_policy

CORPUS = ["What is 12 + 7? The answer is 19.", "Sort these words: pear, apple, fig.", "Count the letters in banana."]
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16], [17], [18, 19]]  # token ids


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return build_tiny_policy(str(tmp_path_factory.mktemp("policy") / "tiny"), CORPUS, seed=1)


@pytest.fixture(scope="session")
def load_tiny(tiny_folder):
    """Loads a fresh (model, tokenizer)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load():
        model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(tiny_folder)

    return load
