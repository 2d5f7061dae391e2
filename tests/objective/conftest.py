"""Random steps, whose rows can be cut into micro-batches."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch

from saerl_lightning.objective.objective import LossInputs

Step = Callable[..., LossInputs]


@pytest.fixture
def make_step() -> Step:
    """Makes a step of 8 rows, off-policy, of unequal lengths; named fields replace its own."""

    def make(seed: int = 0, rows: int = 8, width: int = 6, **given) -> LossInputs:
        g = torch.Generator().manual_seed(seed)
        normal = lambda: torch.randn(rows, width, generator=g, dtype=torch.float64)  # noqa: E731
        mask = torch.arange(width)[None] < torch.randint(1, width + 1, (rows, 1), generator=g)
        old, tokens = -normal().abs(), float(mask.sum())
        step = LossInputs(
            logprobs=(old + 0.5 * normal()).requires_grad_(),
            old_logprobs=old,
            sampler_logprobs=old + 0.5 * normal(),
            entropy=normal().abs().requires_grad_(),
            mask=mask,
            advantages=torch.randn(rows, generator=g, dtype=torch.float64),
            reference=old + 0.5 * normal(),
            step_rows=float(rows),
            step_tokens=tokens,
            scored_tokens=tokens,
            max_tokens=10,
            entropy_floor=0.5,
        )
        return replace(step, **given)

    return make


def of_rows(step: LossInputs, change: Callable[[torch.Tensor], torch.Tensor]) -> LossInputs:
    """The step with `change` made to everything that has a value for each row."""
    values = {field.name: getattr(step, field.name) for field in fields(step)}
    return replace(step, **{name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)})


@pytest.fixture
def micro_batch():
    """Cuts out rows of a step; its size stays that of the step."""
    return lambda step, rows: of_rows(step, lambda value: value[rows])
