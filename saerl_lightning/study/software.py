"""Versions of the packages that a study's runs use, and the commit if the code is a git checkout."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("saerl-lightning", "torch", "lightning", "transformers", "vllm", "numpy", "scipy", "scikit-learn")
CHECKOUT = Path(__file__).parents[2]


def software(checkout: Path = CHECKOUT) -> dict[str, str]:
    """Returns versions by package name, and `commit`; packages that are not installed are left out.

    Args:
        checkout: Folder where the code's git repository would be.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, **({"commit": commit} if (commit := _commit(checkout)) else {})}


def _commit(checkout: Path) -> str:
    """The checkout's commit, marked if files differ from it; "" if there is no repository."""
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "-C", str(checkout), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=, changed"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - our own words
    except (OSError, subprocess.CalledProcessError):
        return ""
