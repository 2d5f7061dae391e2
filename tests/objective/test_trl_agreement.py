"""The objectives that TRL has too give its losses and gradients, by its own code; agreement.py says how."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("agreement.py")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of TRL and of the vLLM that it imports
def test_losses_and_gradients_are_trls():
    found = list(runpy.run_path(str(SCRIPT))["rows"]())
    assert len(found) == 6 * 2 * 6 + 6 + 5 + 5 + 1
    assert not [row for row in found if not (row.loss < 1e-5 and row.gradient < 1e-5 and row.size > 1e-3)]
