"""What to try next: pure functions of the space and the runs so far."""
