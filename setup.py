"""Says what `pyproject.toml` can't beside its search for packages: the folder `configs` is the package's `configs`."""

from pathlib import Path

from setuptools import find_packages, setup

CONFIGS = "saerl_lightning.configs"
# Setuptools takes each folder for a package, and warns of those that are not named, though none holds Python.
FOLDERS = sorted(path.relative_to("configs").parts for path in Path("configs").rglob("*") if path.is_dir())

setup(
    packages=[
        *find_packages(include=["saerl_lightning*"]),
        "saerl_lightning.assets.starter",
        CONFIGS,
        *(".".join([CONFIGS, *parts]) for parts in FOLDERS),
    ],
    package_dir={CONFIGS: "configs"},
)
