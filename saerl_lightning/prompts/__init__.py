"""Sources of prompts, and the conversion of a prompt to token ids."""
