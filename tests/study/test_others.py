"""Others' runs against numbers worked by hand, scipy, and simulated tables of known truth; refusals; the command."""

import csv
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from saerl_lightning.errors import InputError
from saerl_lightning.study.others.compare import compare
from saerl_lightning.study.others.run_effects import compare_runs, noise_of, seeds_needed
from saerl_lightning.study.others.run_page import run_page, sheet
from saerl_lightning.study.others.run_table import RunTable, Setting, read_run_table

HEADER = "run_id,campaign,method,seed,easy,hard"
ROWS = ["1,a,baseline,1,10,2", "2,a,baseline,2,14,4", "3,a,mine,1,13,9", "4,a,mine,2,15,11"]


def written(folder: Path, *lines: str) -> Path:
    path = folder / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_an_effect_by_hand(tmp_path):
    """Runs score 6, 9 and 11, 13: +4.5; variance (4.5 + 2)/2 = 3.25 with 2 degrees of freedom, error² 3.25 · (1/2 + 1/2).

    The benchmarks differ by +2 and +7: variance 12.5 over 2. Without its run's and its benchmark's part a score is off by
    ±.5 (baseline) and 0 (mine): squares 1, over 2 · 1 degrees of freedom: .5 a score, .5 · 1/2 of it in the benchmarks' part.
    """
    table = read_run_table(written(tmp_path, HEADER, *ROWS), ["baseline"])
    (effect,) = compare_runs(table).effects
    assert (table.benchmarks, effect.setting, effect.method, effect.runs) == (["easy", "hard"], "a", "mine", (2, 2))
    assert (effect.these.value, effect.these.error) == (4.5, pytest.approx(sqrt(3.25)))
    assert effect.like.error == pytest.approx(sqrt(3.25 + 12.5 / 2 - 0.5 / 2))
    t2, t1 = 4.302653, 12.706205  # .975 quantiles of Student's t with 2 and 1 degrees of freedom
    quantile = (3.25 * t2 + 6.0 * t1) / 9.25
    assert effect.these.high == pytest.approx(4.5 + t2 * sqrt(3.25), rel=1e-6)
    assert effect.like.low == pytest.approx(4.5 - quantile * sqrt(9.25), rel=1e-6)


def test_two_methods_over_seeds_alone_are_a_t_test_with_equal_variances():
    rng = np.random.default_rng(0)
    runs = {"baseline": rng.normal(50, 2, (3, 12)), "mine": rng.normal(51, 2, (5, 12))}
    (effect,) = compare_runs(RunTable(["b"] * 12, [Setting("s", "baseline", runs)])).effects
    known = stats.ttest_ind(runs["mine"].mean(1), runs["baseline"].mean(1), equal_var=True)
    ends = known.confidence_interval(0.95)
    assert (effect.these.p, effect.these.low, effect.these.high) == pytest.approx(
        (known.pvalue, ends.low, ends.high), rel=1e-6
    )


def test_a_methods_mean_over_settings_by_hand():
    """Differences +3 and -1: mean +1. Spreads 1 and 2 with two runs each: error² (1 + 4)/4, 4/5 of it the second's."""
    one, two = sqrt(0.5) * np.array([[1.0, 1], [-1, -1]]), sqrt(2) * np.array([[1.0, 1], [-1, -1]])
    settings = [
        Setting("x", "baseline", {"baseline": one, "mine": one + 3}),
        Setting("y", "baseline", {"baseline": two, "mine": two - 1}),
    ]
    assert [noise_of(each).spread for each in settings] == pytest.approx([1, 2])
    (mine,) = compare_runs(RunTable(["a", "b"], settings)).methods
    assert (mine.settings, mine.difference.value, mine.difference.error) == (2, 1, pytest.approx(sqrt(5 / 4)))
    assert mine.difference.high == pytest.approx(1 + 4.302653 * sqrt(5 / 4), rel=1e-6)


def test_intervals_cover_and_nulls_are_kept_where_runs_and_benchmarks_have_luck():
    """500 tables of three methods, three seeds, twelve benchmarks; the effect differs between benchmarks."""
    rng, covered, rejected, tables = np.random.default_rng(1), 0, 0, 500
    for _ in range(tables):
        runs = {
            name: 50 + rng.normal(0, 1, (3, 1)) + rng.normal(0, 2, (3, 12)) + rng.normal(0, 3, 12)
            for name in ("baseline", "a", "b")
        }
        effects = compare_runs(RunTable(["b"] * 12, [Setting("s", "baseline", runs)])).effects
        covered += sum(each.like.low < 0 < each.like.high for each in effects)
        rejected += any(each.p_holm <= 0.05 for each in effects)
    assert 0.93 <= covered / (2 * tables) <= 0.98
    assert rejected / tables <= 0.055


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 45])
@pytest.mark.parametrize("spread", [0.4, 1.7])
def test_the_seeds_needed_find_the_difference_four_times_in_five(spread, alpha):
    """Against 40,000 t tests of simulated runs, with the seeds named and with one fewer."""
    rng = np.random.default_rng(2)

    def power(seeds: int) -> float:
        method, baseline = (rng.normal(mean, spread, (40_000, seeds)) for mean in (1.0, 0.0))
        return float(np.mean(stats.ttest_ind(method, baseline, axis=1).pvalue <= alpha))

    seeds = seeds_needed(spread, 1.0, alpha)
    assert power(seeds) > 0.79
    assert power(seeds - 1) < 0.81
    assert seeds_needed(100.0, 0.01) == 100_000


def test_runs_are_divided_by_the_columns_named_and_what_has_no_baseline_is_said(tmp_path):
    more = [
        "5,b,static,1,1,1",
        "6,b,static,2,1,2",
        "7,b,mix,1,3,3",
        "8,b,mix,2,3,4",
        "9,c,mine,1,3,3",
        "10,c,mine,2,3,3",
    ]
    path = written(tmp_path, HEADER, *ROWS, *more)
    table = read_run_table(path, ["baseline", "static"])
    assert [(each.name, each.baseline, sorted(each.runs)) for each in table.settings] == [
        ("a", "baseline", ["baseline", "mine"]),
        ("b", "static", ["mix", "static"]),
    ]
    assert table.left_out == ["c: no run of baseline or static, but of mine; name the baseline by --baseline"]
    assert "- c: no run of baseline" in run_page(table, compare_runs(table))
    (one,) = read_run_table(written(tmp_path, HEADER, *ROWS), ["baseline"], within=[]).settings
    assert one.name == "all runs"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, "can't be read (No such file or directory)"),
        ([HEADER], "it has no runs"),
        ([HEADER, *ROWS, "5,a,mine,2,3,4"], "row 6: the second run of a, mine, 2; name the columns"),
        ([HEADER, *ROWS, "5,a,mine,3,,4"], "row 6, column 'easy': '' is no score"),
        ([HEADER, *ROWS, "5,a,mine,3,inf,4"], "row 6, column 'easy': 'inf' is no score"),
        ([HEADER, *ROWS, "5,a,mine"], "row 6 has another number of cells"),
        (["method,easy,hard", "baseline,1,2"], "no column 'seed'; its columns are method, easy, hard"),
        (["method,seed,easy", "baseline,1,2"], "1 benchmarks (easy); at least two"),
        ([HEADER, *ROWS[:2]], "a: the baseline alone"),
        ([HEADER, ROWS[0], ROWS[2]], "a: one seed of every method"),
        ([HEADER, *ROWS[2:]], "no run of baseline, but of mine; name the baseline by --baseline"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, lines, said):
    path = tmp_path / "none.csv" if lines is None else written(tmp_path, *lines)
    with pytest.raises(InputError) as refusal:
        read_run_table(path, ["baseline"])
    assert said in str(refusal.value)


def test_the_command_prints_the_page_and_writes_every_comparison(tmp_path, capsys):
    path, out = written(tmp_path, HEADER, *ROWS), tmp_path / "effects.csv"
    compare(str(path), csv=str(out))
    assert "4 runs in 1 settings, 2 benchmarks: of 1 comparisons none has an interval" in capsys.readouterr().out
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert (row["setting"], row["method"], row["baseline_runs"], row["difference"]) == ("a", "mine", "2", "4.5")
    assert out.read_text() == sheet(compare_runs(read_run_table(path, ["baseline"])))
