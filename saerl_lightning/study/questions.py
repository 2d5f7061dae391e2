"""Questions of each run's last evaluation: as rows, by topic and level, and as paired arrays; refuses trained ones."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from jsonargparse import ArgumentParser

from saerl_lightning.data.validation import ValidationSet
from saerl_lightning.errors import InputError
from saerl_lightning.prompts.mixture import Part, open_prompts
from saerl_lightning.prompts.source import PromptSource
from saerl_lightning.study.report.facts import Group
from saerl_lightning.study.results import RunResult


@dataclass(frozen=True)
class QuestionAccuracy:
    """A question of a run's last evaluation, with its accuracy."""

    set: str
    uid: str
    topic: str  # "" for none
    level: str  # "" for none
    accuracy: float


Key = tuple[str, int]  # arm and seed
TEST = "test/"  # prefix of the names of test sets


def last_questions(run: RunResult) -> list[QuestionAccuracy]:
    """Reads the questions of each set's last evaluation, by set and uid, without those whose grader failed."""
    frame = run.questions()
    listed: list[dict[str, Any]] = frame.to_dict("records")
    last: dict[str, int] = {}
    for row in listed:
        last[row["set"]] = max(last.get(row["set"], 0), int(row["step"]))
    rows = [row for row in listed if row["step"] == last[row["set"]]]
    found = [
        QuestionAccuracy(
            str(row["set"]), str(row["uid"]), _name(row["topic"]), _name(row["level"]), float(row["accuracy"])
        )
        for row in rows
        if np.isfinite(row["accuracy"])
    ]
    return sorted(found, key=lambda each: (each.set, each.uid))


def groups(questions: Mapping[Key, Sequence[QuestionAccuracy]]) -> list[Group]:
    """Computes accuracies of every set, and of its topics and levels if it has several; means over an arm's runs."""
    listed = [(key, each) for key, own in questions.items() for each in own]
    sets = list(dict.fromkeys(each.set for _, each in listed))
    found = [_group("set", name, [(key, each) for key, each in listed if each.set == name]) for name in sets]
    found = [*_macros(found), *found]
    for kind in ("topic", "level"):
        for name in sets:
            by_value: dict[str, list[tuple[Key, QuestionAccuracy]]] = defaultdict(list)
            for key, each in listed:
                if each.set == name:
                    by_value[each.topic if kind == "topic" else each.level].append((key, each))
            if len(by_value) > 1:
                titles = {part: part or f"no {kind}" for part in sorted(by_value, key=_order)}
                found += [
                    _group(kind, f"{name}: {title}" if len(sets) > 1 else title, by_value[part])
                    for part, title in titles.items()
                ]
    return found


def measured_sets(metric: str, known: Sequence[str]) -> list[str]:
    """Sets over whose questions a metric is a mean: all for macro metrics, one for a set's own, else none."""
    stage, _, rest = metric.partition("/")
    name, _, estimate = rest.rpartition("/")
    if stage not in ("val", "test") or not estimate.startswith("avg@"):
        return []
    own = [each for each in known if each.startswith(TEST) is (stage == "test")]
    return own if name == "macro" else [each for each in own if each.removeprefix(TEST) == name]


def accuracies(
    questions: Mapping[Key, Sequence[QuestionAccuracy]], arms: Sequence[str], seeds: Sequence[int], sets: Sequence[str]
) -> list[dict[str, Float[np.ndarray, "S Q"]]]:
    """Builds each arm's accuracies by set, (S, Q), from the questions that all these runs have graded.

    Args:
        questions: Questions of the finished runs.
        arms: Arms whose tables are built.
        seeds: The S seeds that all these arms have finished.
        sets: Sets whose questions are taken.

    Returns:
        One table an arm, in order; all are empty if a set has fewer than two common questions.
    """
    keys = [(arm, seed) for arm in arms for seed in seeds]
    found = {key: {(each.set, each.uid): each.accuracy for each in questions.get(key, ())} for key in keys}
    common = sorted(set.intersection(*map(set, found.values()))) if found else []
    names = {name: [each for each in common if each[0] == name] for name in sets}
    if not names or min(map(len, names.values())) < 2:
        return [{} for _ in arms]
    return [
        {
            name: np.array([[found[arm, seed][each] for each in own] for seed in seeds], dtype=np.float64)
            for name, own in names.items()
        }
        for arm in arms
    ]


def _group(kind: str, name: str, rows: Iterable[tuple[Key, QuestionAccuracy]]) -> Group:
    by_run: dict[Key, list[float]] = defaultdict(list)
    uids: set[str] = set()
    for key, each in rows:
        by_run[key].append(each.accuracy)
        uids.add(each.uid)
    by_arm: dict[str, list[float]] = defaultdict(list)
    for (arm, _), values in by_run.items():
        by_arm[arm].append(float(np.mean(values)))
    return Group(kind, name, len(uids), {arm: float(np.mean(values)) for arm, values in by_arm.items()})


def _macros(sets: Sequence[Group]) -> list[Group]:
    """Means over all validation sets and over all test sets, if there are several, for arms that have them all."""
    found = []
    for stage, test in (("validation", False), ("test", True)):
        own = [each for each in sets if each.name.startswith(TEST) is test]
        if len(own) > 1:
            arms = [arm for arm in own[0].accuracy if all(arm in each.accuracy for each in own)]
            accuracy = {arm: float(np.mean([each.accuracy[arm] for each in own])) for arm in arms}
            found.append(Group("macro", stage, sum(each.questions for each in own), accuracy))
    return found


def _name(value: Any) -> str:
    # pandas writes None as NaN, the only value that differs from itself.
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _order(name: str) -> tuple[bool, float, str]:
    """Sort key: numbers by size, then names, then the empty name."""
    try:
        return (False, float(name), "")
    except ValueError:
        return (not name, np.inf, name)


GivenSet = str | ValidationSet | PromptSource
GivenPrompts = str | PromptSource | dict[str, str | Part | PromptSource]


def refuse_trained_questions(resolved: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a study that evaluates an arm on questions it is trained on, except in sets with `keep_trained`.

    Sources that a stage has yet to make (`{shared}/…`) are not read; their runs drop such questions.

    Args:
        resolved: Full configuration of each arm.

    Raises:
        InputError: naming the first such set, the number of questions and one of them; or if a source can't be read.
    """
    checked: set[str] = set()
    for arm, config in resolved.items():
        given = {name: config["data"]["init_args"].get(name) for name in ("train", "val", "test", "columns")}
        text = json.dumps(given, sort_keys=True)
        if text not in checked and "{shared}" not in text:
            _refuse(arm, given)
        checked.add(text)


def _refuse(arm: str, given: Mapping[str, Any]) -> None:
    columns = given["columns"]
    train = open_prompts(_made(GivenPrompts, given["train"]), columns).load()
    trained = {prompt.normalised_text for prompt in train}
    for kind in ("val", "test"):
        for name, one in (given[kind] or {}).items():
            asked: GivenSet = _made(GivenSet, one)
            wanted = asked if isinstance(asked, ValidationSet) else ValidationSet(asked)
            source = open_prompts(wanted.source, columns if wanted.columns is None else wanted.columns)
            prompts = [] if wanted.keep_trained else source.load()[: wanted.limit]
            if shared := [prompt for prompt in prompts if prompt.normalised_text in trained]:
                raise InputError(
                    f"data.{kind}.{name} asks {len(shared)} of its {len(prompts)} questions that the arm '{arm}' trains on "
                    f"(first: '{shared[0].uid}'); take them out of data.train or of the set (ReasoningGymPrompts.part keeps "
                    "generated sets apart)"
                )


def _made(kind: Any, given: Any) -> Any:
    parser = ArgumentParser()
    parser.add_argument("--made", type=kind)
    return parser.instantiate(parser.parse_object({"made": given})).made
