"""Estimates from several samples per question: avg@k, pass@k, maj@k."""
