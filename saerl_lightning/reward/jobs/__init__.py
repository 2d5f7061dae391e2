"""Functions that grader processes run: they import neither torch nor lightning."""
