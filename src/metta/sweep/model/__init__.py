"""The language of sweeps: plain immutable data and pure functions, without I/O."""
