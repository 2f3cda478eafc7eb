"""What the runs of a sweep say: pure functions of its state."""
