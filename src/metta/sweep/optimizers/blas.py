"""Linear algebra on one thread.

The matrices here are small: a second thread wins nothing, and where the processors are busy, as they are beside
training jobs, waiting for it costs a hundred times the work (docs/optimizers.md has the figures). One thread also adds
up in one order, so that results do not depend on how many processors there are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

#: As NumPy's and SciPy's wheels name OpenBLAS's functions, and as distributions do.
_AFFIXES = (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", ""))


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenBLAS keeps to the calling thread; other libraries are left as they are."""
    before = [(set_threads, get_threads()) for get_threads, set_threads in _libraries()]
    for set_threads, _ in before:
        set_threads(1)
    try:
        yield
    finally:
        for set_threads, threads in before:
            set_threads(threads)


@cache
def _libraries() -> list[tuple[Callable[[], int], Callable[[int], None]]]:
    """Getter and setter of the number of threads, of NumPy's library and of SciPy's."""
    import numpy.linalg._umath_linalg as of_numpy
    import scipy.linalg._fblas as of_scipy

    found: list[tuple[Callable[[], int], Callable[[int], None]]] = []
    for module in (of_numpy, of_scipy):
        # A symbol is looked up in the module and in all that it was linked with.
        library = ctypes.CDLL(module.__file__)
        for prefix, suffix in _AFFIXES:
            try:
                get_threads = library[f"{prefix}openblas_get_num_threads{suffix}"]
                set_threads = library[f"{prefix}openblas_set_num_threads{suffix}"]
            except AttributeError:
                continue
            found.append((get_threads, set_threads))
            break
    return found
