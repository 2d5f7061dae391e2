"""Ends a process whose gloo threads still hold tensors: `python ending_ranks.py RANK FILE`. Used by test_ending.py."""

from __future__ import annotations

import sys

import torch
from torch import distributed

from saerl_lightning.ranks import processes

assert processes.let_go  # importing it is what registers it

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
GROUP = distributed.group.WORLD  # as a mesh of shards does, this outlives the destruction of the group
for _ in range(30):
    # Not waited for: the thread that carries it out is the last to hold the tensors.
    GROUP.allgather([torch.zeros(200_000), torch.zeros(200_000)], torch.zeros(200_000))
distributed.destroy_process_group()
