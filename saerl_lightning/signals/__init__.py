"""Signals: feature rows that describe prompts."""
