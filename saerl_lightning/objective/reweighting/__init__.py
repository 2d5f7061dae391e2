"""Reweighting: how much each completion or token of a step counts in its gradient."""
