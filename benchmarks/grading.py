"""Right and wrong verdicts by kind of answer, ours beside math-verify's and TRL's: `benchmarks/grading.py`.

`benchmarks/grading.tsv` has a pair a line: kind, gold answer, completion, and whether they should match ("␤" is a line
break). math-verify alone is `verify(parse(f"${gold}$"), parse(completion))`, and without the dollars where that finds
nothing; TRL's is `accuracy_reward` of 1.16 with the gold answer in dollars. A pair that a grader gives no verdict on (it
fails, or takes longer than ten seconds) counts as one that it does not match. The milliseconds are of typical pairs of
GSM8K and MATH, a median of five rounds after a warm-up; ours are what `MathReward` takes with its processes.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from saerl_lightning.records import Prompt, Rollouts
from saerl_lightning.reward.grading.answer import prepare_symbolic, quick_verdict, symbolic_verdict
from saerl_lightning.reward.math_reward import MathReward

TABLE = Path(__file__).parent / "grading.tsv"
DEADLINE_S = 10
TYPICAL = [
    ("GSM8K, boxed", "72", r"Natalia sold 48/2 = 24 clips in May. Altogether she sold \boxed{72} clips."),
    ("GSM8K, in words", "72", "Natalia sold 48/2 = 24 clips in May.\nAltogether she sold 48 + 24 = 72 clips."),
    ("MATH, the same spelling", r"\frac{1}{2}", r"So the probability is $\boxed{\dfrac{1}{2}}$."),
    ("MATH, another number", r"\frac{1}{2}", r"So the probability is $\boxed{\frac{1}{3}}$."),
    ("MATH, interval", "[0,1)", r"Hence $x \in \boxed{[0,1]}$."),
    ("MATH, formula", r"\frac{\sqrt{3}}{2}", r"It is $\boxed{\frac{3}{2\sqrt{3}}}$."),
    ("MATH, polynomial", "x^2+4x+9", r"The result is $\boxed{9+x^2+4x}$."),
]
Grader = Callable[[str, str], float]


@dataclass
class Tally:
    """Verdicts of one grader on one kind."""

    pairs: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def add(self, verdict: bool, match: bool) -> None:
        self.pairs += 1
        self.false_positives += verdict and not match
        self.false_negatives += match and not verdict

    def __str__(self) -> str:
        right = self.pairs - self.false_positives - self.false_negatives
        return f"{right / self.pairs:6.1%}  {self.false_positives:3d}  {self.false_negatives:3d}"


def ours(gold: str, text: str) -> float:
    quick = quick_verdict(gold, text)
    return symbolic_verdict(gold, text) if quick is None else quick


def math_verify_alone(gold: str, text: str) -> float:
    from math_verify import parse, verify

    golds = parse(f"${gold}$", parsing_timeout=None) or parse(gold, parsing_timeout=None)  # type: ignore[arg-type]
    return float(verify(golds, parse(text, parsing_timeout=None), timeout_seconds=None))  # type: ignore[arg-type]


def trl_accuracy(gold: str, text: str) -> float:
    from trl.rewards.accuracy_rewards import accuracy_reward

    [reward] = accuracy_reward([[{"role": "assistant", "content": text}]], [f"${gold}$"])
    return float(reward or 0.0)


GRADERS: dict[str, Grader] = {"ours": ours, "math-verify": math_verify_alone, "TRL": trl_accuracy}


def within(grader: Grader, gold: str, text: str) -> bool:
    """The verdict; False where there is none."""

    def stop(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_S)
    try:
        return grader(gold, text) == 1.0
    except Exception:  # graders raise whatever their parsers meet
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def rows(path: Path) -> list[tuple[str, str, str, bool]]:
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [(kind, gold, text.replace("␤", "\n"), match == "yes") for kind, gold, text, match in lines]


def report(pairs: list[tuple[str, str, str, bool]], console: Console, verbose: bool) -> None:
    tallies: dict[tuple[str, str], Tally] = {}
    for kind, gold, text, match in pairs:
        for name, grader in GRADERS.items():
            verdict = within(grader, gold, text)
            for key in ((kind, name), ("all", name)):
                tallies.setdefault(key, Tally()).add(verdict, match)
            if verbose and name == "ours" and verdict != match:
                console.print(f"{kind}: {gold!r}; {text!r}; wanted {match}", markup=False)
    table = Table(
        "kind", "pairs", *(f"{name}\nright   fp   fn" for name in GRADERS), title="right, false positives and negatives"
    )
    for kind in [*sorted({pair[0] for pair in pairs}), "all"]:
        table.add_row(kind, str(tallies[kind, "ours"].pairs), *(str(tallies[kind, name]) for name in GRADERS))
    console.print(table)


def milliseconds(call: Callable[[], object], repeats: int = 20) -> float:
    call()
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        rounds.append((time.perf_counter() - start) / repeats * 1e3)
    return statistics.median(rounds)


def rewarded(reward: MathReward, gold: str, text: str) -> None:
    prompt = Prompt.asking(gold, "?", gold)
    reward([prompt], Rollouts.pack([[0]], [[1]], [[0.0]], [False], [text], 1, 0))


def speed(console: Console) -> None:
    reward = MathReward(workers=1)
    table = Table("pair", "MathReward", "math-verify", "TRL", title="milliseconds a pair")
    for name, gold, text in TYPICAL:
        calls = [
            lambda gold=gold, text=text: rewarded(reward, gold, text),
            lambda gold=gold, text=text: math_verify_alone(gold, text),
            lambda gold=gold, text=text: trl_accuracy(gold, text),
        ]
        table.add_row(name, *(f"{milliseconds(call):.2f}" for call in calls))
    reward.close()
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--table", type=Path, default=TABLE, help="file of pairs: kind, gold, completion, yes or no, by tabs"
    )
    parser.add_argument("--verbose", action="store_true", help="print the pairs that ours gets wrong")
    options = parser.parse_args()
    prepare_symbolic()
    console = Console(width=120)
    report(rows(options.table), console, options.verbose)
    speed(console)


if __name__ == "__main__":
    main()
