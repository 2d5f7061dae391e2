"""The work that all sides of the extraction benchmark do: the same prompts, the same SAE, the same pooling.

The SAE is a TopK SAE with random weights: what extraction costs does not depend on what was learned. The prompts are
reasoning-gym's, of many tasks, in shuffled order, through the model's chat template.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

TASKS = (
    *("basic_arithmetic", "chain_sum", "gsm_symbolic", "leg_counting", "number_sorting", "propositional_logic"),
    *("syllogism", "word_sorting", "simple_equations", "family_relationships", "letter_counting", "caesar_cipher"),
    *("bitwise_arithmetic", "spell_backward", "knights_knaves", "base_conversion", "count_primes"),
    *("calendar_arithmetic", "mini_sudoku", "spiral_matrix"),
)
ACTIVE = 32  # features of a token (the SAE's k)


@dataclass(frozen=True)
class Report:
    """What a side tells of one run."""

    seconds: float  # from token ids to pooled rows
    tokens: int  # of all prompts, shared ones counted each time
    peak_gb: float  # highest resident memory meanwhile, model included
    gemm_gflops: float = 0.0  # the machine's rate just after, where the side measured it
    computed_gflop: float = 0.0  # matrix products of the tokens that were really computed, where the side counted them

    @property
    def rate(self) -> float:
        """Prompt tokens a second."""
        return self.tokens / self.seconds


def questions(count: int, seed: int = 0) -> list[str]:
    """As many questions of every task, shuffled."""
    import reasoning_gym

    each = -(-count // len(TASKS))
    found = [item["question"] for task in TASKS for item in reasoning_gym.create_dataset(task, size=each, seed=seed)]
    random.Random(seed).shuffle(found)
    return found[:count]


def save_random_sae(folder: Path, model: Path, factor: int) -> Path:
    """Saves a TopK SAE of `factor` times the model's width for its middle layer."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from transformers import AutoConfig

    width = AutoConfig.from_pretrained(model).hidden_size
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=width, d_sae=factor * width, k=ACTIVE))
    torch.nn.init.kaiming_uniform_(sae.W_enc)
    sae.save_model(folder)
    return folder


def parse(description: str | None) -> argparse.Namespace:
    """Reads a side's command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--sae", type=Path, required=True, help="SAE folder")
    parser.add_argument("--questions", type=Path, required=True, help="JSON list of texts")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets report.json and rows.npy")
    parser.add_argument("--way", choices=["full", "stop"], default="full", help="the peer's forward pass")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return given


def chats(file: Path) -> list[list[dict[str, str]]]:
    """The questions as chats."""
    return [[{"role": "user", "content": text}] for text in json.loads(file.read_text())]


def write(out: Path, report: Report, rows: np.ndarray) -> None:
    """Writes a side's report and its pooled rows, (P, F)."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(asdict(report)))
    np.save(out / "rows.npy", rows)


def token_count(ids: Sequence[Sequence[int]]) -> int:
    """Tokens of all prompts."""
    return sum(map(len, ids))
