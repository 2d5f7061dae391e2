"""The experiment that settles the claim: arms, seeds, budgets, what they cost and what they say."""
