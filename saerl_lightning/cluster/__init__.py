"""Ray for bulk work beside training, and SLURM: what a cluster asks of a run."""
