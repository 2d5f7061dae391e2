"""The model that is trained: loading, log-probabilities, weights."""
