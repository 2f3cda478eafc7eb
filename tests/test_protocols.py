"""What optimizers are told."""

from __future__ import annotations

from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.run import FailureKind, Outcome
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.protocols import History
from metta.sweep.testing import run_events, sweep_config, sweep_created
from metta.sweep.testing.sweeps import SWEEP


def history(*, partial_results: bool) -> History:
    """A completed run, one that failed after it had reported, one that failed before, and one under way."""
    *reported, exited, judged = run_events(1, score=2.0)
    failed = replace(exited, body=ev.JobExited(outcome=Outcome.KILLED, failure=FailureKind.KILLED))
    given_up = replace(judged, body=ev.RunFailed(reason="killed", partial_score=2.0))
    events = [
        sweep_created(partial_results=partial_results),
        *run_events(0, score=1.0),
        *reported,
        failed,
        given_up,
        *run_events(2, score=None),
        *run_events(3)[:4],
    ]
    state = fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(events, start=1)])
    return History.of(state)


def test_completed_runs_are_observations() -> None:
    [only] = history(partial_results=False).observations
    assert (only.run_id, only.score, only.partial) == (ids.run_id(SWEEP, 0), 1.0, False)
    assert only.config.keys() == sweep_config().search_space.parameters.keys()
    assert only.cost == 3600.0


def test_the_last_value_before_a_failure_is_one_when_the_sweep_wants_partial_results() -> None:
    observations = history(partial_results=True).observations
    assert [(each.score, each.partial) for each in observations] == [(1.0, False), (2.0, True)]
