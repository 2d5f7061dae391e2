"""The end of a process that trained with others: gloo's threads must have let go of their tensors before Python does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.training.test_equal_ranks import ROOT

SCRIPT = Path(__file__).with_name("ending_ranks.py")


def test_processes_end_well_while_gloo_still_holds_tensors(tmp_path):
    """Without `let_go`, 9 of 10 such pairs had a process that aborted (exit status 134)."""
    for number in range(3):
        commands = [[sys.executable, str(SCRIPT), str(rank), str(tmp_path / f"meet-{number}")] for rank in range(2)]
        pair = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
        ended = [(each.communicate(timeout=120)[1], each.returncode) for each in pair]
        assert [code for _, code in ended] == [0, 0], ended
