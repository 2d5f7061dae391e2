"""A study's report: its facts gathered, then tables, charts and words on one page, and the CSV files that publish it."""
