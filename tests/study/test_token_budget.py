"""The budget of generated tokens: it ends a run with the step that reaches it, also across a resume."""

from types import SimpleNamespace

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.study.plan import budget_flags
from saerl_lightning.study.spec import Budget
from saerl_lightning.training.callbacks import TokenBudget


def step(budget: TokenBudget, tokens: float) -> bool:
    """Ends a step that logged so many tokens, of all ranks, and says whether training is to stop."""
    logged = {"rollouts/generated_tokens": torch.tensor(tokens)}
    trainer = SimpleNamespace(callback_metrics=logged, world_size=2, should_stop=False)
    budget.on_train_batch_end(trainer, None, None, None, 0)
    return trainer.should_stop


def test_it_stops_with_the_step_that_reaches_the_budget():
    budget = TokenBudget(100)
    assert [step(budget, 33.0), step(budget, 66.0), step(budget, 1.0)] == [False, False, True]


def test_it_counts_on_after_a_resume():
    first, second = TokenBudget(100), TokenBudget(100)
    step(first, 60.0)
    second.load_state_dict(first.state_dict())
    assert step(second, 40.0)


def test_a_budget_of_no_tokens_or_without_counts_is_refused():
    with pytest.raises(InputError, match=r"TokenBudget\.tokens is 0"):
        TokenBudget(0)
    trainer = SimpleNamespace(callback_metrics={}, world_size=1)
    with pytest.raises(InputError, match="logs no generated tokens"):
        TokenBudget(1).on_train_batch_end(trainer, None, None, None, 0)


def test_a_budget_of_tokens_becomes_flags_of_its_callback():
    assert budget_flags(Budget(generated_tokens=7)) == [
        "--trainer.max_steps=-1",
        '--trainer.callbacks+={"class_path": "TokenBudget", "init_args": {"tokens": 7}}',
    ]
