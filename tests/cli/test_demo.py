"""The demo is a study: what it prints of its runs, checked by hand, and what it leaves to the study."""

import pandas
import pytest
from rich.console import Console

from saerl_lightning.errors import RunStopped
from saerl_lightning.study.results import StudyResults
from saerl_lightning.tools import demo, study
from tests.study.synthetic_study import Arm, write_study

FIRST = {"a": 0.1, "b": 0.3, "c": 0.5, "d": 0.7}  # of each question, before training
TOPICS = {"a": "sums", "b": "sums", "c": "words", "d": "words"}
GAINS = {("grpo", 0): 0.2, ("grpo", 1): 0.1, ("saerl", 0): 0.0, ("saerl", 1): 0.1}


@pytest.fixture
def root(tmp_path):
    """Two arms on two seeds: all begin with the same answers, and every question gains alike."""
    arms = {arm: Arm([[0.4, 0.5, 0.4 + GAINS[arm, seed]] for seed in (0, 1)]) for arm in ("grpo", "saerl")}
    folder = write_study(tmp_path / "quick", arms, ["saerl"])
    for (arm, seed), gain in GAINS.items():
        rows = [
            {"set": "unseen", "step": step, "uid": uid, "topic": TOPICS[uid], "level": "", "accuracy": value + more}
            for step, more in ((0, 0.0), (10, 0.9), (20, gain))
            for uid, value in FIRST.items()
        ]
        pandas.DataFrame(rows).to_parquet(folder / arm / f"seed-{seed}" / "questions.parquet")
    return folder


def test_the_table_has_every_question_before_training_and_each_arms_mean_at_the_end(root):
    accuracy = demo.accuracy_of_questions(StudyResults.read(root))
    assert [uid for _, uid in accuracy.index] == list("abcd")
    assert accuracy["cold start"].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert accuracy["grpo"].tolist() == pytest.approx([0.25, 0.45, 0.65, 0.85])  # 0.2 and 0.1 more, on average 0.15
    assert accuracy["saerl"].tolist() == pytest.approx([0.15, 0.35, 0.55, 0.75])
    console = Console(width=120, record=True)
    console.print(demo.accuracy_table(accuracy))
    rows = [line.split("│")[1:-1] for line in console.export_text().splitlines() if line.startswith("│")]
    assert [[cell.split("[")[0].strip() for cell in row] for row in rows] == [
        ["sums", "2", "0.200", "0.350", "0.250"],
        ["words", "2", "0.600", "0.750", "0.650"],
        ["all", "4", "0.400", "0.550", "0.450"],
    ]


def test_gains_over_the_cold_start_and_differences_of_the_arms_are_told(root):
    results = StudyResults.read(root)
    told = demo.findings(results, demo.accuracy_of_questions(results))
    assert told[0] == "grpo over the cold start: +0.150 [+0.150, +0.150] (over questions)"  # alike on all questions
    assert told[1] == "saerl over the cold start: +0.050 [+0.050, +0.050] (over questions)"
    assert told[2].startswith("saerl - grpo at the end: -0.100 [") and told[2].endswith("(2 seeds)")
    # Means of the curves: 0.475 and 0.45 for grpo, 0.425 and 0.45 for saerl.
    assert told[3].startswith("saerl - grpo in the area under the curve: -0.025 [")


def test_a_finished_demo_prints_its_results_again_and_one_without_a_gain_is_stopped(root, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(study, "run_study", lambda *given: asked.append(given) or 0)
    demo.demo(str(root))
    said = capsys.readouterr().out
    assert asked[0][0].name == "quick" and asked[0][2] == root
    assert f"{root}/report/report.html" in said and f"{root}/shared/plan/plan.html" in said
    assert (root / "report/report.html").is_file()
    accuracy = demo.accuracy_of_questions(StudyResults.read(root))
    with pytest.raises(RunStopped, match=r"did not improve the policy: .* \[\+0.000, \+0.000\]"):
        demo.require_gain(accuracy.assign(grpo=accuracy["cold start"]), "grpo")


def test_a_study_with_a_failed_run_ends_the_demo_with_its_exit_code(root, capsys, monkeypatch):
    monkeypatch.setattr(study, "run_study", lambda *given: 1)
    with pytest.raises(SystemExit) as ended:
        demo.demo(str(root))
    assert ended.value.code == 1 and capsys.readouterr().out == ""
