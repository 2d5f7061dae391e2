"""Worlds of prompts that are made, so that the truth about each of them is known: what is bad, crowded, or too hard."""
