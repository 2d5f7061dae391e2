"""Causal tests of the probes: what moves a prompt's difficulty, what moves the probe's word for it, what orders hang on."""
