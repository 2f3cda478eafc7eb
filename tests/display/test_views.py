"""Pieces that the views are made of."""

from __future__ import annotations

from metta.sweep.display.views import status_text
from metta.sweep.model.run import JobStatus
from metta.sweep.model.sweep import SweepStatus


def test_a_run_that_was_stopped_early_has_another_colour_than_a_sweep_that_was_stopped() -> None:
    assert status_text(JobStatus.STOPPED).style == "blue"
    assert status_text(SweepStatus.STOPPED).style == "yellow"
