"""`demo`: the whole method as a small study: tiny policy, SAE, signals, labels, plan, and GRPO with and without.

It downloads nothing and needs no GPU. It uses the same YAML, prompts, engine, graders, checkpoints and export as a real
run. It shows that these work, and how much GRPO gains here. A few seeds of a tiny policy say little about which arm is
better elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from jsonargparse import ArgumentParser, auto_cli
from rich.console import Console
from rich.table import Table

from saerl_lightning import shipped
from saerl_lightning.assets.tiny import build_tiny_policy
from saerl_lightning.errors import RunStopped
from saerl_lightning.evaluation.estimators import bootstrap_interval
from saerl_lightning.files import read_mapping
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.ranges import Seed, Workers, require_arguments
from saerl_lightning.records import Prompt
from saerl_lightning.registration import register_classes
from saerl_lightning.study.effects import compare
from saerl_lightning.study.processes import SubprocessExecutor
from saerl_lightning.study.report.numbers import read_numbers
from saerl_lightning.study.results import StudyResults
from saerl_lightning.study.spec import StudySpec

if TYPE_CHECKING:
    import pandas

TASKS = "configs/demo/tasks.yaml"
STUDY = "configs/study/quick.yaml"
COLD = "cold start"


def tiny_policy(folder: str, seed: Seed = 0, tasks: str = TASKS) -> None:
    """Writes the demo's policy: random weights, about a million of them.

    Args:
        folder: Folder to write, which must be missing or empty.
        seed: Seed of the random weights.
        tasks: Path of the config whose training prompts the tokenizer is trained on.
    """
    require_arguments(tiny_policy, locals())
    build_tiny_policy(folder, [f"{each.text} {each.answer}" for each in prompts_of(tasks, "train")], seed=seed)


def prompts_of(tasks: str, *path: str) -> list[Prompt]:
    """Loads a prompt set of a config; path "val", "demo" selects `data.val.demo`."""
    source = read_mapping(shipped.find(tasks), "the config of the tasks")["data"]["init_args"]
    for key in path:
        source = source[key]
    register_classes()
    parser = ArgumentParser()
    parser.add_subclass_arguments(PromptSource, "source")
    return parser.instantiate(parser.parse_object({"source": source})).source.load()


def demo(out: str = "runs/demo", jobs: Workers = 2) -> None:
    """Trains a tiny policy by GRPO with and without SAERL's operations, as a small study, and prints what came of it.

    The same command resumes a demo that was interrupted. Another study is run by `study run`.

    Args:
        out: Folder of the study: what the runs share, the runs, and the report.
        jobs: Number of runs at a time.

    Raises:
        RunStopped: if the interval of the gain by plain GRPO does not lie above 0.
    """
    from saerl_lightning.study.report.gather import write_report
    from saerl_lightning.tools.study import run_study

    require_arguments(demo, locals())
    source, root = Path(shipped.find(STUDY)), Path(out)
    if code := run_study(StudySpec.read(source), source, root, jobs, SubprocessExecutor()):
        sys.exit(code)
    results = StudyResults.read(root)
    accuracy = accuracy_of_questions(results)
    Console(width=110).print(accuracy_table(accuracy))
    print("\n".join([*findings(results, accuracy), f"every number and curve: {write_report(root)}"]))
    print(f"the plan, prompt by prompt: {root / 'shared/plan/plan.html'}")
    require_gain(accuracy, results.spec.baseline)


def accuracy_of_questions(results: StudyResults) -> pandas.DataFrame:
    """Accuracy of each question before training and at the end of each arm, as means over the arm's runs.

    Returns:
        A row a question, indexed by topic and uid; a column for the cold start and for each arm.
    """
    import pandas

    tables = [(run.arm, run.questions()) for run in results.runs]
    columns = {COLD: pandas.concat([table[table.step == table.step.min()] for _, table in tables])}
    for arm in results.spec.arms:
        columns[arm] = pandas.concat([table[table.step == table.step.max()] for of, table in tables if of == arm])
    means = {name: rows.groupby(["topic", "uid"]).accuracy.mean() for name, rows in columns.items()}
    return pandas.DataFrame(means)


def accuracy_table(accuracy: pandas.DataFrame) -> Table:
    """Table of the mean accuracy by kind of task, and of all questions."""
    table = Table(title="accuracy on questions that are asked nowhere else, 95 % intervals over questions")
    for column in ("task", "questions", *accuracy.columns):
        table.add_column(str(column), justify="left" if column == "task" else "right")
    kinds = [(str(topic), rows) for topic, rows in accuracy.groupby("topic")]
    for name, rows in [*kinds, ("all", accuracy)]:
        cells = [interval(rows[column].to_numpy()) for column in accuracy.columns]
        table.add_row(name, str(len(rows)), *cells, end_section=bool(kinds) and name == kinds[-1][0])
    return table


def findings(results: StudyResults, accuracy: pandas.DataFrame) -> list[str]:
    """Lines on the gain of each arm over the cold start, and on the difference between the arms."""
    gains = [
        f"{arm} over the {COLD}: {interval((accuracy[arm] - accuracy[COLD]).to_numpy(), '+.3f')} (over questions)"
        for arm in results.spec.arms
    ]
    words = {"end": "at the end", "area": "in the area under the curve"}
    differences = [
        f"{each.arm} - {each.other} {words[each.measure]}: {each.difference.value:+.3f} "
        f"[{each.difference.low:+.3f}, {each.difference.high:+.3f}] ({each.seeds} seeds)"
        for each in compare(read_numbers(results)).effects
        if each.measure in words
    ]
    return [*gains, *differences]


def interval(values: Float[np.ndarray, " Q"], form: str = ".3f") -> str:
    """Mean of values with its 95 % bootstrap interval."""
    low, high = bootstrap_interval(values)
    return f"{np.nanmean(values):{form}} [{low:{form}}, {high:{form}}]"


def require_gain(accuracy: pandas.DataFrame, arm: str) -> None:
    """Refuses a demo in which an arm did not improve the policy.

    Raises:
        RunStopped: if the interval of the gain over questions does not lie above 0.
    """
    low, high = bootstrap_interval((accuracy[arm] - accuracy[COLD]).to_numpy())
    if not low > 0:
        raise RunStopped(f"GRPO did not improve the policy: the difference's interval is [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    auto_cli(tiny_policy, as_positional=True)
