"""Groups of earlier steps that a step trains on again."""
