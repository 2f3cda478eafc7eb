"""What to start, stop and end: pure functions of a sweep's state."""
