"""A plan's page and files: the ledger of its prompts, cards of its clusters, charts, and the comparison of two plans."""
