"""Messages about what matters, through Apprise: what is said of it, to whom, and that it arrives."""
