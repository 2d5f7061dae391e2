"""Estimates from several samples a question: avg@k, pass@k, maj@k."""
