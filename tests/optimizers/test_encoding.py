"""Encoding by columns is encoding, and refuses what the space refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.errors import SearchSpaceError
from metta.sweep.model.space import Choice, Config, Constant, LogNormal, LogUniform, Normal, Range, SearchSpace, Uniform
from metta.sweep.optimizers.encoding import Encoder
from metta.sweep.testing.optimizers import SPACES

ALL_KINDS = SearchSpace.of(
    {
        "lr": LogUniform(1e-5, 1e-1),
        "dropout": Uniform(-1, 3),
        "momentum": Range(0.5, 0.999),
        "decay": Range(1e-6, 1e-2, log=True),
        "init": Normal(0.0, 0.02),
        "scale": LogNormal(0.0, 1.0),
        "batch": Range(16, 4096, log=True),
        "layers": Range(-4, 9, step=3),
        "huge": Range(0, 2**49),
        "rate": Range(0.1, 0.3, step=0.1),
        "kind": Choice([1, 1.0, True, None, "x", [1, 2], {"deep": [1]}]),
        "width": Choice([32, 64], when={"layers": [2, 5], "kind": [1.0, {"deep": [1]}]}),
        "fixed": Constant([1], when={"width": 64}),
    }
)


@given(seed=st.integers(0, 2**32), count=st.integers(0, 9), space=st.sampled_from([*SPACES.values(), ALL_KINDS]))
@settings(max_examples=100, deadline=None)
def test_columns_equal_what_the_space_encodes_one_by_one_to_the_last_bit(
    seed: int, count: int, space: SearchSpace
) -> None:
    points = np.random.default_rng(seed).random((count, len(space.dimensions)))
    configs = [space.decode(point.tolist()) for point in points]
    units, active, fits = Encoder(space).encode(configs)
    assert units.tolist() == [space.encode(config) for config in configs]
    assert active.tolist() == [[name in config for name in space.dimensions] for config in configs]
    assert fits.all()
    one_by_one = [Encoder(space).encode([config])[0][0].tolist() for config in configs]
    assert one_by_one == units.tolist()


@pytest.mark.parametrize(
    "broken",
    [
        {"lr": 1.0},
        {"lr": -1.0},
        {"lr": "0.1"},
        {"lr": float("nan")},
        {"dropout": 10**400},
        {"batch": 8},
        {"batch": 2.5},
        {"layers": 0},
        {"layers": True},
        {"huge": 2**70},
        {"rate": 0.15},
        {"kind": False},
        {"kind": [2, 1]},
        {"unheard of": 1},
        {"kind": "x", "width": 32},
        {"layers": 2, "kind": 1.0},
        {"layers": 2, "kind": 1.0, "width": 64},
        {"layers": 2, "kind": 1.0, "width": 64, "fixed": [2]},
        {"layers": 2, "kind": 1.0, "width": 32, "fixed": [1]},
        {"lr": None},
    ],
    ids=str,
)
def test_what_the_space_refuses_does_not_fit_and_spoils_no_other_row(broken: dict[str, Any]) -> None:
    good: Config = {
        "lr": 1e-3,
        "dropout": 2,
        "momentum": 0.9,
        "decay": 1e-6,
        "init": 0.0,
        "scale": 1.0,
        "batch": 16,
        "layers": -4,
        "huge": 3,
        "rate": 0.2,
        "kind": "x",
    }
    bad = {**good, **broken}
    with pytest.raises(SearchSpaceError):
        ALL_KINDS.check(bad)
    units, _, fits = Encoder(ALL_KINDS).encode([good, bad, good])
    assert fits.tolist() == [True, False, True]
    assert units[0].tolist() == units[2].tolist() == ALL_KINDS.encode(good)
    del good["lr"]
    assert not Encoder(ALL_KINDS).encode([good])[2].any()


def test_numbers_are_taken_as_the_space_takes_them() -> None:
    space = SearchSpace.of({"x": Uniform(0, 4), "n": Range(1, 4), "b": Range(1, 64, log=True), "m": Range(0, 1)})
    config = {"x": 3, "n": 2.0, "b": 16.0, "m": 1}
    units, _, fits = Encoder(space).encode([config, {"x": 1.0, "n": 2, "b": 16, "m": 0}])
    assert fits.all()
    assert units[0].tolist() == space.encode(config)
