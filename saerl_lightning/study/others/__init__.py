"""Others' runs: tables of runs that were trained elsewhere, with this project's statistics."""
