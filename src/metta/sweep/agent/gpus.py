"""Which GPUs jobs may use."""

from __future__ import annotations

import os
import subprocess


def named_gpus() -> list[str] | None:
    """Those of the variable CUDA_VISIBLE_DEVICES; None when it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in {"", "-1"}]


def visible_gpus() -> list[str]:
    """Identifiers of this machine's GPUs as CUDA_VISIBLE_DEVICES takes them; those of that variable when it is set."""
    if (named := named_gpus()) is not None:
        return named
    try:
        command = ["nvidia-smi", "-L"]
        listing = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # no driver, no GPUs
    return [str(index) for index, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU ")]
