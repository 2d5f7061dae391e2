"""What a validation that comes before the first step lets pass."""

from types import SimpleNamespace

import pytest

from saerl_lightning.data.resuming.position import before_any_step


def test_early_stopping_is_strict_again_after_the_first_validation():
    strict, loose = SimpleNamespace(strict=True), SimpleNamespace(strict=False)
    trainer = SimpleNamespace(early_stopping_callbacks=[strict, loose])
    with before_any_step(trainer):
        assert (strict.strict, loose.strict) == (False, False)
    assert (strict.strict, loose.strict) == (True, False)
    with pytest.raises(KeyError), before_any_step(trainer):
        raise KeyError
    assert strict.strict
