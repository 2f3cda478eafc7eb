"""Sweeps in other forms: what is exported, and how it comes back in."""
