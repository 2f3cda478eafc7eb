"""What the optimizers' options may be."""

from __future__ import annotations

from typing import Any

from metta.sweep.errors import ConfigError

#: More of anything that an option counts would not fit into memory, or take longer than any training.
MOST = 100_000


def check_count(optimizer: str, name: str, value: Any, *, least: int = 1) -> None:
    """Raise ConfigError unless an option is a whole number of a sensible size."""
    if type(value) is not int or not least <= value <= MOST:
        raise ConfigError(f"strategy: {optimizer} needs {name} to be an integer from {least} to {MOST}, got {value!r}")
