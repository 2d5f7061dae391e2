"""Loads a policy in shards and whole: `torchrun`-like, `python shard_loading_ranks.py POLICY FOLDER RANK PORT HOW LORA`.

Saves the weights and buffers that two processes together have, logits under the root's hooks, and what memory grew by.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

from saerl_lightning.policy.load import LoRA, Policy
from saerl_lightning.policy.shard_loading import load_sharded
from saerl_lightning.policy.sharding import shard
from saerl_lightning.policy.weights import whole, with_whole_weights


def peak() -> int:
    """Highest resident memory of this process in KiB; what `getrusage` tells may be its parent's."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1])


def main(path: str, out: Path, rank: int, port: str, how: str, lora: int) -> None:
    warnings.simplefilter("ignore")
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama
    import transformers.models.qwen2.modeling_qwen2

    if lora:
        import peft

        del peft
    del transformers
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    over = partial(shard, mesh=init_device_mesh("cpu", (2,)))
    policy = Policy(path, lora=LoRA(lora) if lora else None)
    torch.manual_seed(rank)  # the adapters of the first process are everyone's
    before = peak()
    if how == "parts":
        model = load_sharded(policy, over, torch.device("cpu"))
        assert model is not None
    else:
        model = policy.load_model()
        over(model)
    grown = peak() - before
    assert not any(each.is_meta for each in (*model.parameters(), *model.buffers()))
    state = {name: whole(each.detach()) for name, each in model.state_dict().items()}
    state |= {f"buffer {name}": each for name, each in model.named_buffers()}
    with torch.no_grad():
        state["logits"] = with_whole_weights(model, lambda: model(torch.arange(5, 25)[None]).logits.clone())
    model.train()
    with_whole_weights(model, lambda: (model(torch.arange(5, 25)[None]).logits.float() ** 2).mean()).backward()
    state |= {f"gradient {name}": whole(each.grad) for name, each in model.named_parameters() if each.requires_grad}
    if rank == 0:
        torch.save(state, out / f"{how}.pt")
    facts = {"grown": grown, "name": model.name_or_path, "eos": model.generation_config.eos_token_id}
    (out / f"{how}-{rank}.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6], int(sys.argv[6]))
