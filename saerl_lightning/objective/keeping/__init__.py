"""Keeping: which of a step's graded completions are trained on."""
