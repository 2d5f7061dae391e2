"""A plan as people read it: the ledger in a file, tables for the terminal and W&B, and one page that opens anywhere."""
