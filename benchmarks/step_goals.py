"""What a step must reach beside TRL's, and what it aims for: 8 completions of 64 tokens a prompt, every group with variance.

Pure numbers; the comparison of a row with them is in `grpo_step.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """The bounds of one row.

    Args:
        ratio: least ratio of step times, TRL / ours.
        aim: ratio that would be better still.
        memory: largest ratio of peak memories, ours / TRL.
        overhead: largest share of our step outside the algorithm's phases.
    """

    ratio: float
    aim: float
    memory: float
    overhead: float

    def reached(self, ratio: float) -> str:
        """How far a ratio of step times got: "aim", "goal" or "missed"."""
        if ratio >= self.aim:
            return "aim"
        return "goal" if ratio >= self.ratio else "missed"

    def missed(self, ratio: float, memory: float, overhead: float) -> list[str]:
        """The bounds that a row's numbers do not keep, in words."""
        bounds = {
            f"ratio {ratio:.2f} < {self.ratio}": ratio < self.ratio,
            f"memory ratio {memory:.2f} > {self.memory}": memory > self.memory,
            f"overhead {overhead:.1%} > {self.overhead:.1%}": overhead > self.overhead,
        }
        return [bound for bound, is_missed in bounds.items() if is_missed]


# By policy and prompt length. A tiny step is so short that its overhead says nothing about a real one.
GOALS = {
    ("tiny", 64): Goal(3.0, 4.0, memory=1.0, overhead=1.0),
    ("tiny", 128): Goal(3.2, 4.5, memory=1.0, overhead=1.0),
    ("tiny", 256): Goal(4.2, 6.0, memory=1.0, overhead=1.0),
    ("smollm2", 64): Goal(1.9, 2.5, memory=0.6, overhead=0.03),
    ("smollm2", 128): Goal(2.9, 4.0, memory=0.5, overhead=0.03),
    ("smollm2", 256): Goal(4.0, 5.0, memory=0.37, overhead=0.03),
}
