"""The whole test of an optimizer's promises."""

from hill_climbing import HillClimbing

from metta.sweep.testing import check_optimizer


def test_it_is_an_optimizer():
    """It keeps to all that metta.sweep relies on."""
    check_optimizer(HillClimbing)
