"""Arguments of other trainers (TRL, verl) as settings of this one, and what has no counterpart, with the reason."""
