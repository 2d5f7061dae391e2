"""Several processes of one run: collectives, decisions that all take together, one run folder, and a common end."""
