"""The tiny policy whose activations SAEs are trained on is the one that GRPO's tests train."""

from tests.training.conftest import tiny

__all__ = ["tiny"]
