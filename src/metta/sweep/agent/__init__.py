"""The process beside the jobs: starts them, watches them, and writes to the store what becomes of them."""
