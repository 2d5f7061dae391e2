"""Policy-gradient algorithms, one a file; `policy_gradient` is what they share, `terms` what all of them can add."""
