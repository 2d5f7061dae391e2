"""The budget of generated tokens: it ends a run with the step that reaches it, also across a resume."""

from types import SimpleNamespace

import pytest
import torch

from saerl_lightning.errors import InputError
from saerl_lightning.study.plan import budget_flags
from saerl_lightning.study.spec import Budget
from saerl_lightning.training.token_budget import TokenBudget


def step(budget: TokenBudget, rate: float, seconds: float, ranks: int = 1) -> bool:
    """Ends a step that logged so much, and says whether training is to stop."""
    logged = {"throughput/sampled_tokens_per_s": torch.tensor(rate), "time/generate": torch.tensor(seconds)}
    trainer = SimpleNamespace(callback_metrics=logged, world_size=ranks, should_stop=False)
    budget.on_train_batch_end(trainer, None, None, None, 0)
    return trainer.should_stop


def test_it_stops_with_the_step_that_reaches_the_budget():
    budget = TokenBudget(100)
    assert [step(budget, 30.0, 1.1), step(budget, 20.0, 3.3), step(budget, 10.0, 0.1)] == [False, False, True]
    assert not step(TokenBudget(100), 50.0, 1.9) and step(TokenBudget(100), 50.0, 1.0, ranks=2)


def test_it_counts_on_after_a_resume():
    first, second = TokenBudget(100), TokenBudget(100)
    step(first, 60.0, 1.0)
    second.load_state_dict(first.state_dict())
    assert step(second, 40.0, 1.0)


def test_what_it_cannot_count_is_refused():
    with pytest.raises(InputError, match=r"TokenBudget\.tokens is 0"):
        TokenBudget(0)
    trainer = SimpleNamespace(callback_metrics={}, world_size=1)
    with pytest.raises(InputError, match="logs no generated tokens"):
        TokenBudget(1).on_train_batch_end(trainer, None, None, None, 0)


def test_the_flags_name_it():
    assert budget_flags(Budget(generated_tokens=7)) == [
        "--trainer.max_steps=-1",
        '--trainer.callbacks+={"class_path": "TokenBudget", "init_args": {"tokens": 7}}',
    ]
