"""The command line, `metta sweep ...`: each command parses, calls one function, and prints."""
