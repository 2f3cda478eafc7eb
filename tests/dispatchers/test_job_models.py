"""What simulated jobs do where nobody says better."""

from __future__ import annotations

import pytest

from metta.sweep.dispatchers.job_models import MadeUpJobs
from metta.sweep.model.run import JobDefinition, JobType
from metta.sweep.testing import sweep_config
from metta.sweep.testing.sweeps import SWEEP


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_made_up_curves_get_better_and_some_configurations_are_better_than_others(direction: str) -> None:
    config = sweep_config(direction=direction, max_trials=30)
    model = MadeUpJobs(config)
    sign = 1 if direction == "maximize" else -1
    finals = []
    for index in range(30):
        job = JobDefinition(
            job_id=f"x{index}.train.1",
            run_id=f"x{index}",
            sweep_id=SWEEP,
            type=JobType.TRAIN,
            attempt=1,
            config={"lr": 10 ** (-5 + 4 * index / 29)},
        )
        course = model(job)
        assert model(job) == course
        values = [sign * report.metrics["reward"] for report in course.reports]
        assert values == sorted(values)
        assert 300 <= course.seconds <= 1200
        finals.append(values[-1])
    assert max(finals) - min(finals) > 0.1
