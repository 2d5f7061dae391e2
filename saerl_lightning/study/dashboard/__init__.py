"""The view of a study in Weights & Biases: its panels, and the workspace that holds them."""
