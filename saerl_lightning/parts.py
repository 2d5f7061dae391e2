"""Imports every signal, operation, objective, reward and engine, so that YAML and flags may use their short class names.

The package's own `__init__` does not do it, so that a grader's worker process starts in a blink.
"""

from __future__ import annotations

import importlib
import pkgutil

import saerl_lightning

FOLDERS = ("data", "objective", "policy", "prompts", "reward", "rollout", "sae", "signals", "training")


def import_parts() -> None:
    """Imports every module of the part folders; their heavy dependencies stay inside their functions."""
    for folder in FOLDERS:
        package = importlib.import_module(f"{saerl_lightning.__name__}.{folder}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
