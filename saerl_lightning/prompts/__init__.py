"""Where prompts come from, and how a prompt becomes token ids."""
