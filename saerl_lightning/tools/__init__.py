"""The tools behind the one door, one a file: each is a function whose signature is its command line."""
