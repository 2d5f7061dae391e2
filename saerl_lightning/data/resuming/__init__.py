"""Resuming: the position of a run in a checkpoint, and the refusal of a checkpoint of another plan."""
