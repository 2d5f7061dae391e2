"""The page and the files of a plan: ledger of prompts, cluster cards, charts, and comparison of two plans."""
