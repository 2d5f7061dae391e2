"""Beliefs: the pass rate of every prompt, learned from the groups that were graded so far."""
