"""Online operations: they go on deciding which prompts are served while training runs."""
