"""Mixers: the proportions of domains in what is served next, by what was measured of each domain."""
