"""The loop that drives a sweep: `decide` thinks, `Controller` acts."""
