"""What may start at all: pure functions of a sweep's state and the time."""
