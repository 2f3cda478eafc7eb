"""Linear algebra keeps to one thread while an optimizer thinks, and goes on as before afterwards."""

from __future__ import annotations

import pytest

from metta.sweep.optimizers import blas


def threads() -> list[int]:
    return [get_threads() for get_threads, _ in blas._libraries()]


def test_threads_are_as_before_whatever_happens() -> None:
    for get_threads, set_threads in blas._libraries():
        set_threads(2)
        assert get_threads() in {1, 2}
    before = threads()
    inside = []

    def fail() -> None:
        with blas.one_thread():
            inside.extend(threads())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [1] * len(before)
    assert threads() == before


def test_the_libraries_of_the_wheels_are_found() -> None:
    import numpy as np

    if "openblas" in np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]:
        assert len(blas._libraries()) == 2
