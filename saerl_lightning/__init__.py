"""Prompts get feature rows; callbacks turn a plan into a plan; the loader serves the plan;
one step samples, scores and descends.

The public names stand in `__init__.pyi`, and are imported when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
