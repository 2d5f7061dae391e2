"""Says what `pyproject.toml` can't beside its search for packages: the folder `configs` is the package's `configs`."""

from setuptools import find_packages, setup

CONFIGS = "saerl_lightning.configs"

setup(
    packages=[*find_packages(include=["saerl_lightning*"]), CONFIGS],
    package_dir={CONFIGS: "configs"},
)
