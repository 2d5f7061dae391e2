"""Models built locally: the tiny policy of tests and demo, and SmolLM2 from a PyPI package."""
