"""The classes that the package ships of one kind, which the conformance suites go through."""

import importlib
import inspect
import pkgutil
from types import ModuleType


def shipped(base: type, package: ModuleType) -> dict[str, type]:
    """The concrete public subclasses of a base that the package has, by name, once all modules of a folder are imported."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    found, pending = {}, [base]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        public = not cls.__name__.startswith("_")
        if public and not inspect.isabstract(cls) and cls.__module__.startswith("saerl_lightning."):
            found[cls.__name__] = cls
    return found
