"""Which completions of which prompts a step samples and trains on."""
