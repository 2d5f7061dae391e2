"""Makes the benchmarks' modules importable, as they are for one another; last, so that they shadow nothing."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
