"""Our side of the extraction benchmark: what `SAESignals` does from token ids to pooled rows."""

from __future__ import annotations

import time

import numpy as np
import torch
from extraction_work import Report, chats, parse, token_count, write
from lockstep import peak_memory_gb, reset_peak_memory
from scipy.sparse import csr_array
from torch import nn

from saerl_lightning.records import Prompt
from saerl_lightning.signals import prefix_tree
from saerl_lightning.signals.model import ReadModel, encode
from saerl_lightning.signals.pooling import SPARSE
from saerl_lightning.signals.reading import ResidualStream, pooled_parts, suited_forward
from saerl_lightning.signals.sae import sparse_codes
from saerl_lightning.signals.sae_source import SAESource

BUDGET, MAX_TOKENS = 1024, 1024  # the defaults of SAESignals


def gemm_gflops(size: int = 1024, times: int = 20) -> float:
    """Rate of float32 matrix products on this machine, with as many threads as the extraction."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    rates = []
    for _ in range(times):
        began = time.perf_counter()
        torch.mm(a, b)
        rates.append(2 * size**3 / (time.perf_counter() - began) / 1e9)
    return float(np.median(rates))


def main() -> None:
    """Extracts all prompts' features."""
    given = parse(__doc__)
    model = ReadModel(str(given.model), device="cpu")
    sae = SAESource(str(given.sae)).load(model)
    decoder, tokenizer = model.load()
    prompts = [Prompt(str(i), tuple(chat), "") for i, chat in enumerate(chats(given.questions))]
    ids = encode(prompts, tokenizer, MAX_TOKENS)
    every = sae.cfg.d_sae  # no feature is cut, so that rows can be compared

    def pool(reading: ResidualStream) -> csr_array:
        return SPARSE["max"](sparse_codes(sae, reading.hidden), reading.paths, every)

    reset_peak_memory()
    began = time.perf_counter()
    parts = list(pooled_parts(suited_forward(decoder, MAX_TOKENS), ids, pool, BUDGET))
    seconds = time.perf_counter() - began
    peak = peak_memory_gb()
    rows = np.zeros((len(ids), every), dtype=np.float32)
    for positions, part in parts:
        rows[positions] = part.toarray() if isinstance(part, csr_array) else part
    computed = sum(len(prefix_tree.build([ids[i] for i in part])) for part in prefix_tree.batches(ids, BUDGET))
    weights = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, nn.Linear)) + sae.W_enc.numel()
    write(given.out, Report(seconds, token_count(ids), peak, gemm_gflops(), 2 * weights * computed / 1e9), rows)


if __name__ == "__main__":
    main()
