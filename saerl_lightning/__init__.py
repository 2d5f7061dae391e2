"""Prompts get feature rows; callbacks turn a plan into a plan; the loader serves the plan;
one step samples, scores and descends.
"""

__version__ = "0.1.0"
