"""One step ahead: the next batch is sampled and graded while the present one is trained."""
