"""What users give in Python: parts of a module or datamodule, and what the methods of their own classes return."""
