"""A job that keeps a GPU busy for a known share of its time, and holds a known part of its memory."""

from __future__ import annotations

import time
from typing import Any

from metta.sweep import report_metrics

HELD_GIB = 8
_SIZE, _PRODUCTS = 4096, 60


def work(config: dict[str, Any]) -> dict[str, float]:
    """Multiply matrices for `duty` of the time, wait for the rest of it, and do so for `seconds`."""
    import torch

    held = torch.empty(HELD_GIB << 30, dtype=torch.uint8, device="cuda").fill_(1)
    matrix = torch.randn(_SIZE, _SIZE, device="cuda", dtype=torch.bfloat16)
    _multiply(matrix)
    products, begin = 0, time.monotonic()
    while (now := time.monotonic()) - begin < config["seconds"]:
        _multiply(matrix)
        busy = time.monotonic() - now
        products += _PRODUCTS
        time.sleep(busy * (1 - config["duty"]) / config["duty"])
        report_metrics({"products": products, "step": products // _PRODUCTS})
    assert bool(held[0])
    return {"products": products, "products_a_second": products / (time.monotonic() - begin)}


def _multiply(matrix: Any) -> None:
    import torch

    for _ in range(_PRODUCTS):
        matrix @ matrix
    torch.cuda.synchronize()
