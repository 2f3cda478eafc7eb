"""Test functions with known minima, as search spaces and scores."""

from __future__ import annotations

import math

import numpy as np

from metta.sweep.model.space import Choice, Config, Range, SearchSpace, Uniform

BRANIN_SPACE = SearchSpace.of({"x": Uniform(-5.0, 10.0), "y": Uniform(0.0, 15.0)})
BRANIN_MINIMUM = 0.39788735772973816


def branin(config: Config) -> float:
    """Branin's function (Dixon & Szegö 1978): three minima, all of them global."""
    x, y = config["x"], config["y"]
    valley = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


HARTMANN_SPACE = SearchSpace.of({f"x{number}": Uniform(0.0, 1.0) for number in range(1, 7)})
HARTMANN_MINIMUM = -3.32236801141551
_WEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
_SHARPNESS = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_CENTRES = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(config: Config) -> float:
    """Hartmann's function in six dimensions (Dixon & Szegö 1978): six minima, one of them global."""
    point = np.array([config[name] for name in HARTMANN_SPACE.parameters])
    return float(-_WEIGHTS @ np.exp(-(_SHARPNESS * (point - _CENTRES) ** 2).sum(axis=1)))


#: What each letter stands for along its axis: in no order, as categories are.
_LETTERS = dict(zip("abcdefg", (4.0, -16.0, 0.0, 24.0, -8.0, 12.0, -28.0), strict=True))
#: Where the minimum lies along the numeric axes: in no centre and on no edge.
_MINIMUM_AT = {"x1": -11.3, "x2": 7.9, "x3": -20.6, "x4": 15.2, "n1": -7, "n2": 9, "n3": 3}
ACKLEY_SPACE = SearchSpace.of(
    {
        **{name: Uniform(-32.768, 32.768) for name in ("x1", "x2", "x3", "x4")},
        **{name: Range(-20, 20) for name in ("n1", "n2", "n3")},
        **{name: Choice(list(_LETTERS)) for name in ("c1", "c2", "c3")},
    }
)
ACKLEY_MINIMUM = 0.0


def ackley(config: Config) -> float:
    """Ackley's function (1987) in ten dimensions: four floats, three integers and three categories."""
    point = np.array(
        [_LETTERS[value] if name not in _MINIMUM_AT else value - _MINIMUM_AT[name] for name, value in config.items()]
    )
    ripples = math.exp(np.cos(2 * math.pi * point).mean())
    return float(20 + math.e - 20 * math.exp(-0.2 * math.sqrt((point**2).mean())) - ripples)
