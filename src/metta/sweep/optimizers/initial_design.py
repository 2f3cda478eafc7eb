"""Where a search begins: the middle of the space, then a scrambled Sobol sequence."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import qmc

from metta.sweep.model.space import SearchSpace
from metta.sweep.optimizers.encoding import Floats

#: Points before the model takes over: few, since it learns from its own choices as well.
_FEWEST, _MOST = 3, 16
#: Points for each value of a parameter on which it depends what else there is: a branch shows little of itself at once.
_A_BRANCH = 2


def size(space: SearchSpace) -> int:
    """Number of points of the initial design."""
    parents = {parent for conditions in space.conditions.values() for parent in conditions}
    branches = sum(space.parameters[parent].cardinality or 0 for parent in parents)
    return min(_FEWEST + len(space.dimensions) // 10 + _A_BRANCH * branches, _MOST)


def point(seed: int, index: int, dimensions: int) -> Floats:
    """The point (d,) of this number.

    The first is the middle of the cube: who sets bounds sets them around what is thought good.
    """
    if index == 0 or dimensions == 0:
        return np.full(dimensions, 0.5)
    scramble = np.random.default_rng(np.random.SeedSequence(seed))
    if dimensions > qmc.Sobol.MAXDIM:
        return np.asarray(scramble.random((index, dimensions))[-1])
    sequence = qmc.Sobol(dimensions, scramble=True, rng=scramble)
    if index > 1:
        sequence.fast_forward(index - 1)
    with warnings.catch_warnings():
        # SciPy warns that balance needs powers of two.
        warnings.simplefilter("ignore", UserWarning)
        return np.asarray(sequence.random(1)[0], dtype=np.float64)
