"""Feature rows about prompts."""
