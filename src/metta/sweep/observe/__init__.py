"""Looking at what happened: the log as a stream, the sweep as it was, and why it came to that."""
