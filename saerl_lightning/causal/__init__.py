"""Causal tests: does the difficulty probe respond to changes that should, or should not, change difficulty?"""
