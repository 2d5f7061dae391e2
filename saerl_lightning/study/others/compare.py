"""`study compare`: reads a table of others' runs, compares its methods, and prints what it says."""

from __future__ import annotations

from pathlib import Path

from saerl_lightning.files import write_whole
from saerl_lightning.ranges import Positive, require_arguments
from saerl_lightning.study.others.run_effects import compare_runs
from saerl_lightning.study.others.run_page import run_page, sheet
from saerl_lightning.study.others.run_table import read_run_table


def compare(
    file: str,
    baseline: list[str] = ["baseline"],  # noqa: B006  # never changed
    within: list[str] | None = None,
    benchmarks: list[str] | None = None,
    method: str = "method",
    seed: str = "seed",
    points: Positive = 1.0,
    csv: str | None = None,
) -> None:
    """Compares the methods of a table of runs that were trained anywhere: intervals, Holm's correction, seeds needed.

    Args:
        file: CSV file with a header and one run a row: its method, its seed, and a column for each benchmark.
        baseline: Methods that others are held against; of each setting the first that was run there.
        within: Columns that divide the runs into comparable settings; null takes campaign, model, dataset, data, task,
            regime and steps, as far as the file has them.
        benchmarks: Columns of scores; null takes all other columns of numbers.
        method: Column of the methods.
        seed: Column of the seeds.
        points: Difference, in the unit of the scores, for which the needed number of seeds is given.
        csv: File that gets all comparisons with all digits; null writes none.
    """
    require_arguments(compare, locals())
    runs = read_run_table(Path(file), baseline, within, benchmarks, method, seed)
    compared = compare_runs(runs, points)
    if csv is not None:
        write_whole(Path(csv), sheet(compared))
    print(run_page(runs, compared), end="")
