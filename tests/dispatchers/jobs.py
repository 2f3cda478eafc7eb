"""Jobs to dispatch."""

from __future__ import annotations

from metta.sweep.model import ids
from metta.sweep.model.run import JobDefinition, JobType, Resources
from metta.sweep.testing.sweeps import SWEEP


def job(index: int = 0, job_type: JobType = JobType.TRAIN, resources: Resources = Resources()) -> JobDefinition:  # noqa: B008 (frozen)
    """The first attempt at a job of the sweep's run of that index."""
    run_id = ids.run_id(SWEEP, index)
    return JobDefinition(
        job_id=ids.job_id(run_id, job_type, 1),
        run_id=run_id,
        sweep_id=SWEEP,
        type=job_type,
        attempt=1,
        config={"lr": 0.01},
        resources=resources,
    )
