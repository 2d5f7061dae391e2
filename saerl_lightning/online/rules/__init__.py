"""Rules: which prompts are served next, given what is believed of their pass rates."""
