"""What a study's runs are made with: versions of the packages, and the commit where the code is a checkout."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("saerl-lightning", "torch", "lightning", "transformers", "vllm", "numpy", "scipy", "scikit-learn")
CHECKOUT = Path(__file__).parents[2]


def software(checkout: Path = CHECKOUT) -> dict[str, str]:
    """Gives versions by name, and `commit`; what is not installed, or is no checkout, is left out.

    Args:
        checkout: where the code's repository would be.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, **({"commit": commit} if (commit := _commit(checkout)) else {})}


def _commit(checkout: Path) -> str:
    """The checkout's commit, marked where files differ from it; "" where there is none."""
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "-C", str(checkout), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=, changed"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - our own words
    except (OSError, subprocess.CalledProcessError):
        return ""
