"""The peer: SAE features of prompts as one writes it today with sae-lens and transformers.

Padded batches of 16 in the data's order, dense codes, the largest value of each feature over a prompt's tokens.
`--way full` takes the hidden states of the whole model; `--way stop` is fairer: sae-lens' bridge with a cache of one hook
point, stopped behind the layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from extraction_work import Report, chats, parse, token_count, write
from lockstep import peak_memory_gb, reset_peak_memory
from sae_lens import SAE
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

BATCH = 16
Hidden = Callable[[Tensor, Tensor], Tensor]


def whole_model(folder: Path, layer: int) -> Hidden:
    """Hidden states of every layer, of which one is used."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def hidden(tokens: Tensor, mask: Tensor) -> Tensor:
        out = model(input_ids=tokens, attention_mask=mask, output_hidden_states=True, use_cache=False)
        return out.hidden_states[layer + 1]

    return hidden


def stopped_bridge(folder: Path, layer: int) -> Hidden:
    """sae-lens' own model, which need not run what comes behind the hook."""
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    bridge = SAETransformerBridge.boot_transformers(str(folder), device="cpu")
    wanted = f"blocks.{layer}.hook_resid_post"
    names = {wanted, bridge._resolve_hook_name(wanted)}

    def hidden(tokens: Tensor, mask: Tensor) -> Tensor:
        _, cache = bridge.run_with_cache(
            tokens, attention_mask=mask, names_filter=lambda name: name in names, stop_at_layer=layer + 1
        )
        return next(cache[name] for name in names if name in cache)

    return hidden


WAYS = {"full": whole_model, "stop": stopped_bridge}


@torch.no_grad()
def pooled(hidden: Hidden, sae: SAE, rows: list[list[int]], pad: int) -> Tensor:
    """The largest value of each feature, (P, F)."""
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    codes = sae.encode(hidden(tokens, mask))
    mask[:, 0] = 0  # an attention sink; both sides leave it out
    return (codes * mask[..., None]).amax(1)


def main() -> None:
    """Runs one way over all prompts."""
    given = parse(__doc__)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    layer = AutoConfig.from_pretrained(given.model).num_hidden_layers // 2
    hidden = WAYS[given.way](given.model, layer)
    sae = SAE.load_from_disk(given.sae).eval()
    encoded = tokenizer.apply_chat_template(chats(given.questions), add_generation_prompt=True, return_dict=True)
    ids = encoded["input_ids"]
    reset_peak_memory()
    began = time.perf_counter()
    parts = [pooled(hidden, sae, ids[i : i + BATCH], tokenizer.pad_token_id or 0) for i in range(0, len(ids), BATCH)]
    seconds = time.perf_counter() - began
    write(given.out, Report(seconds, token_count(ids), peak_memory_gb()), torch.cat(parts).numpy())


if __name__ == "__main__":
    main()
