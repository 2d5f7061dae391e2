"""The arithmetic of the speed benchmarks: what the same work is, what is kept of it, and what counts as reached."""

from dataclasses import fields, replace

import long_completions
import pytest
from grpo_step import Row, plan, skips
from hypothesis import given
from hypothesis import strategies as st
from lockstep import StepReport
from step_ablation import ALL_OFF, ALL_ON, ROUNDS, flags
from step_goals import GOALS, Goal
from step_sides import Medians, own_command
from workload import FLAT_REWARD, Workload, is_flat, reward, text_reward

from saerl_lightning.training.shortcuts import Shortcuts

WORK = Workload("tiny", prompts=4, prompt_tokens=128, steps=5)


def side(seconds: float, training: float = 1.0, start_gb: float = 0.5, peak_gb: float = 1.0) -> Medians:
    return Medians(seconds, {"forward": training / 4, "backward": 3 * training / 4}, start_gb, peak_gb)


# -- the work -------------------------------------------------------------------------------------------------------------


@given(prompts=st.integers(1, 40), numerator=st.integers(0, 8))
def test_flat_prompts_are_the_asked_for_share_of_every_step(prompts, numerator):
    share = numerator / 8
    chosen = sum(is_flat(place, share) for place in range(prompts))
    assert chosen == int(prompts * share)


def test_half_of_a_step_is_every_second_prompt_in_every_step():
    work = replace(WORK, zero_variance=0.5)
    assert [work.uid(i, f"p{i}") for i in range(6)] == ["p0", "flat:p1", "p2", "flat:p3", "p4", "flat:p5"]
    assert work.flat_groups == 0.5 and WORK.flat_groups == 0.0
    assert [WORK.uid(i, "p") for i in range(4)] == ["p"] * 4


def test_a_flat_prompt_earns_a_constant_and_any_other_what_its_text_says():
    texts = ["seven", "8", "", "seven "]
    assert {reward("flat:chain-3", text) for text in texts} == {FLAT_REWARD}
    assert [reward("chain-3", text) for text in texts] == [text_reward(text) for text in texts]
    assert len({text_reward(text) for text in texts}) == 4


def test_one_micro_batch_holds_the_padded_step_and_uneven_work_takes_two():
    assert WORK.micro_tokens == 4 * 8 * (128 + 64)
    assert WORK.packed_tokens == 4 * (128 + 8 * 64) and WORK.sampled_tokens == 4 * 8 * 64
    uneven = replace(WORK, uneven=True)
    assert 2 * uneven.micro_tokens == WORK.micro_tokens
    assert [uneven.length_of(i) for i in range(3)] == [128, 64, 128]
    assert [WORK.length_of(i) for i in range(3)] == [128, 128, 128]


# -- what is kept ---------------------------------------------------------------------------------------------------------


def test_medians_are_of_each_number_alone_and_the_peak_is_the_last():
    reports = [
        StepReport(seconds, {"generate": generate, "sync": 0.5}, 64.0, 0.0, 0.5, peak)
        for seconds, generate, peak in [(9.0, 1.0, 1.0), (4.0, 3.0, 1.2), (5.0, 2.0, 1.5)]
    ]
    kept = Medians.over(reports)
    assert (kept.seconds, kept.phases) == (5.0, {"generate": 2.0, "sync": 0.5})
    assert kept.grown_gb == pytest.approx(1.0)
    assert kept.shown("generate") == 2.5 and kept.rest == 2.5 and kept.untimed == pytest.approx(0.5)


def test_a_forward_for_the_old_log_probabilities_counts_as_training():
    assert Medians(4.0, {"old": 1.0, "forward": 1.0, "backward": 1.5}, 0, 1).shown("forward+backward") == 3.5


# -- goals ----------------------------------------------------------------------------------------------------------------


def test_speed_goals_are_the_agreed_ratios():
    ratios = {key: (goal.ratio, goal.aim) for key, goal in GOALS.items()}
    assert ratios == {
        ("tiny", 64): (3.0, 4.0),
        ("tiny", 128): (3.2, 4.5),
        ("tiny", 256): (4.2, 6.0),
        ("smollm2", 64): (1.9, 2.5),
        ("smollm2", 128): (2.9, 4.0),
        ("smollm2", 256): (4.0, 5.0),
    }
    assert [GOALS["smollm2", n].memory for n in (64, 128, 256)] == [0.6, 0.5, 0.37]


def test_a_bound_itself_is_good_enough_and_what_is_beyond_is_named():
    goal = Goal(ratio=3.0, aim=4.0, memory=0.5, overhead=0.03)
    assert [goal.reached(ratio) for ratio in (2.99, 3.0, 3.99, 4.0)] == ["missed", "goal", "goal", "aim"]
    assert goal.missed(3.0, 0.5, 0.03) == []
    assert goal.missed(2.5, 0.75, 0.05) == ["ratio 2.50 < 3.0", "memory ratio 0.75 > 0.5", "overhead 5.0% > 3.0%"]


def test_a_row_is_held_to_the_goal_of_its_policy_and_prompt_and_flat_rows_to_none():
    slow = Row(replace(WORK, prompt_tokens=64), trl=side(2.9), ours=side(1.0))
    assert slow.missed == ["tiny at 64: ratio 2.90 < 3.0"]
    assert replace(slow, work=replace(slow.work, zero_variance=0.5)).missed == []
    assert replace(slow, work=replace(slow.work, prompt_tokens=100)).missed == []


def test_the_default_run_has_both_policies_three_lengths_and_a_flat_row_each():
    works = list(plan(["tiny", "smollm2"], [64, 128, 256], 5, None))
    kinds = [(work.model, work.prompt_tokens, work.zero_variance) for work in works]
    assert kinds[:4] == [("tiny", 64, 0.0), ("tiny", 128, 0.0), ("tiny", 256, 0.0), ("tiny", 128, 0.5)]
    assert [kind[1:] for kind in kinds[4:]] == [kind[1:] for kind in kinds[:4]]
    assert [work.zero_variance for work in plan(["tiny"], [64, 128], 5, 0.25)] == [0.25, 0.25]


def test_the_skip_is_told_beside_the_same_row_without_flat_groups():
    even, flat = (
        Row(WORK, side(4, 3.0), side(1, 1.0)),
        Row(replace(WORK, zero_variance=0.5), side(4, 3.0), side(1, 0.5)),
    )
    told = "tiny at 128, 50% flat: forward+backward is 6.00 times as fast as TRL's, 3.00 times without flat groups"
    assert list(skips([even, flat])) == [told]
    assert list(skips([flat])) == []


# -- the ablation ---------------------------------------------------------------------------------------------------------


def test_every_switch_is_taken_away_once_and_no_round_has_more_than_four_processes():
    taken = [setting for each in ROUNDS for setting in each.settings if setting != ALL_OFF]
    assert sorted(taken) == sorted([field.name for field in fields(Shortcuts)] + ["fused"])
    assert max(1 + len(each.settings) for each in ROUNDS) <= 4
    assert flags(ALL_ON) == [] and flags(ALL_OFF) == ["--model.shortcuts=none", "--model.engine.fused=false"]
    assert flags("fused") == ["--model.engine.fused=false"]
    without = "shared_prefix, lean_layers, skip_zero_advantage, reuse_forward, sort_by_length, overlap_grading"
    assert flags("tiled_head") == [f"--model.shortcuts=[{without}]"]


def test_only_uneven_work_comes_in_parts_and_takes_time_to_grade(tmp_path):
    even, uneven = (own_command(w, tmp_path, tmp_path, tmp_path, ["--x"]) for w in (WORK, replace(WORK, uneven=True)))
    assert even[-1] == uneven[-1] == "--x"
    assert "--model.engine.max_rows=8" in uneven and not any("max_rows" in part for part in even)
    assert any('"seconds": 0.01' in part for part in uneven) and any('"seconds": 0.0}' in part for part in even)


# -- long completions -----------------------------------------------------------------------------------------------------


def test_both_series_share_their_common_size_and_grow():
    works = long_completions.plan([64, 256, 1024], [4, 8, 16, 32], prompts=2, steps=2)
    sizes = [(work.group_size, work.completion_tokens) for work in works]
    assert sizes == [(8, 64), (4, 256), (8, 256), (16, 256), (32, 256), (8, 1024)]


@given(per_token=st.floats(0, 1), start=st.floats(0, 100))
def test_the_slope_of_a_line_is_its_growth_per_thousand_tokens(per_token, start):
    tokens = [1024, 4096, 16384]
    assert long_completions.slope(tokens, [start + per_token * n for n in tokens]) == pytest.approx(
        1000 * per_token, abs=1e-6
    )


def test_a_slope_is_least_squares_and_needs_two_sizes():
    # x - mean: -1, 0, 1 thousand; y - mean: -2, 1, 1 -> 3 / 2 per thousand
    assert long_completions.slope([1000, 2000, 3000], [1.0, 4.0, 4.0]) == pytest.approx(1.5)
    assert long_completions.slope([1000], [1.0]) is None


def test_slopes_are_of_their_own_series_and_leave_out_what_was_not_measured():
    def row(group: int, length: int, seconds: float, trl: bool = True) -> long_completions.Row:
        work = replace(WORK, prompts=1, group_size=group, completion_tokens=length)
        return long_completions.Row(work, side(2 * seconds) if trl else None, side(seconds))

    rows = [row(8, 125, 1.0), row(8, 256, 2.048), row(8, 1000, 8.0, trl=False), row(16, 256, 2.048)]
    found = {(grows.split(",")[0], name): values["s"] for grows, name, values in long_completions.slopes(rows)}
    assert found["completions", "ours"] == pytest.approx(1.0) and found["completions", "TRL"] == pytest.approx(2.0)
    assert found["groups", "ours"] == pytest.approx(0.0, abs=1e-9)


def test_memory_is_expected_to_grow_with_tokens_and_with_the_length_of_a_row():
    small = replace(WORK, group_size=8, completion_tokens=256)
    rows = [long_completions.Row(small, side(1, start_gb=0.5, peak_gb=1.5), side(1))]
    assert long_completions.expected_gb(rows, replace(small, completion_tokens=1024)) == pytest.approx(16.0)
    assert long_completions.expected_gb(rows, replace(small, group_size=32)) == pytest.approx(4.0)
    assert long_completions.expected_gb([], small) == 0.0
