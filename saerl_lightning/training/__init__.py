"""The Lightning floor: modules and small callbacks, one a file."""
