"""Shards of a policy: runs that go on, also on another number of processes, and arithmetic in bfloat16."""

from __future__ import annotations

import pytest
import torch

from saerl_lightning.policy.load import Policy
from tests.training.conftest import largest_difference
from tests.training.test_equal_ranks import SCRIPT, ran
from tests.training.test_precision import agreement

pytestmark = pytest.mark.slow


def test_a_sharded_run_goes_on_bit_for_bit_and_on_another_number_of_processes(tiny, tmp_path):
    """AdamW makes rounding visible: from the same weights, one process and two are 2e-5 apart after four steps."""
    for processes in ("1", "2"):
        ran(tiny, tmp_path, processes, script=SCRIPT.with_name("sharded_resume_ranks.py"))
    for processes, savers in (("1", "2"), ("2", "1")):
        ran(tiny, tmp_path, processes, savers, script=SCRIPT.with_name("sharded_resume_ranks.py"))
    for savers in (1, 2):
        whole, parted, half, other = (
            torch.load(tmp_path / f"{name}.pt", weights_only=True)
            for name in (f"whole-{savers}-4", f"parted-{savers}-4", f"parted-{savers}-2", f"from-{savers}-4")
        )
        assert largest_difference(whole, parted) == 0 and largest_difference(whole, half) > 1e-3
        print(f"saved by {savers}, on the other number: {largest_difference(whole, other):.2g} from its own")
        assert largest_difference(whole, other) < 1e-5
        files = sorted(each.name for each in (tmp_path / f"parted-{savers}").iterdir())
        assert files == ["last-000004.shards", "last.ckpt"]


def test_shards_in_bfloat16_take_the_steps_of_ddp_in_bfloat16(tiny, tmp_path):
    """Masters are float32. DDP rounds matrix products alone, shards all results of a layer: they agree to rounding.

    DAPO's choice of the tokens with the highest entropy jumps with rounding, also between one process and DDP.
    """
    for strategy, precision in (("one", "32-true"), ("ddp", "bf16-mixed"), ("sharded", "bf16-mixed")):
        ran(tiny, tmp_path, "scripted", strategy, precision)
    exact, ddp, sharded = (
        torch.load(tmp_path / f"grpo-scripted-{each}.pt", weights_only=True) for each in ("one", "ddp", "sharded")
    )
    cosine, ratio = agreement(ddp, sharded, Policy(tiny).load_model().state_dict())
    print(f"cosine {cosine:.6f}, ratio {ratio:.6f}, largest difference {largest_difference(ddp, sharded):.2g}")
    assert {each.dtype for each in sharded.values()} == {torch.float32}
    assert largest_difference(sharded, exact) > 1e-4  # it did compute in bfloat16
    assert cosine > 0.9999 and ratio == pytest.approx(1, abs=1e-3)
    assert largest_difference(ddp, sharded) < 2e-3
