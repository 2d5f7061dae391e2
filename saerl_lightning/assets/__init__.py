"""Models that are made here: the tiny policy of tests and demo, and SmolLM2 from a wheel."""
