"""Defaults for what a user has not said, found in the machine, the code and the literature."""
