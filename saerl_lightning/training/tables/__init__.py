"""Callbacks that write tables: completions, the plan's ledger, what was served, and the accuracy of every question."""
