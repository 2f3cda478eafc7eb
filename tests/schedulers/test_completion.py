"""When a sweep will have ended: exact where durations are, calibrated where they vary, and the same each time."""

from __future__ import annotations

import heapq
import math
import random
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobType
from metta.sweep.model.space import Choice, SearchSpace
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import CommandTarget, SweepStatus
from metta.sweep.schedulers.adaptive import AdaptiveScheduler
from metta.sweep.schedulers.completion import Completion, predict
from metta.sweep.schedulers.durations import Durations, fit_shape
from metta.sweep.schedulers.workload import Workload, workload_of
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

HOUR = 3600.0


def work(**fields: Any) -> Workload:
    """Twenty runs of a second each have ended; `fields` say what is left to do."""
    nothing: dict[str, Any] = {
        "train_slots": 4,
        "eval_slots": 1,
        "trained_s": [1.0] * 20,
        "evaluated_s": [],
        "in_training_s": [],
        "in_evaluation_s": [],
        "waiting": [],
        "unevaluated": 0,
        "new_runs": None,
        "last_start": None,
        "compute_left_s": None,
    }
    return Workload(**{**nothing, **fields})


def expected(**fields: Any) -> float:
    """Seconds until the end."""
    prediction = predict(work(**fields), 0.0, 0.8)
    assert prediction is not None
    assert prediction.low <= prediction.expected <= prediction.high
    return prediction.expected


class TestEqualDurations:
    """Runs of a second each: the end can be counted on the fingers."""

    @pytest.mark.parametrize(("new", "rounds"), [(1, 1), (4, 1), (5, 2), (16, 4), (17, 5), (400, 100), (401, 101)])
    def test_new_runs_take_whole_rounds(self, new: int, rounds: int) -> None:
        assert expected(new_runs=new) == pytest.approx(rounds, rel=0.03)

    def test_nothing_left_is_the_end(self) -> None:
        assert expected(new_runs=0) == 0

    def test_running_jobs_have_the_rest_of_their_time(self) -> None:
        assert expected(new_runs=0, in_training_s=[0.25, 0.75]) == pytest.approx(0.75, rel=0.1)
        assert expected(new_runs=4, in_training_s=[0.5] * 4) == pytest.approx(1.5, rel=0.05)

    def test_waiting_runs_start_when_they_may(self) -> None:
        assert expected(new_runs=0, waiting=[0.0, 5.0]) == pytest.approx(6, rel=0.05)
        assert expected(new_runs=0, waiting=[0.0] * 8) == pytest.approx(2, rel=0.05)

    def test_more_jobs_than_slots_may_be_running(self) -> None:
        assert expected(new_runs=1, train_slots=1, in_training_s=[0.5] * 3) == pytest.approx(1.5, rel=0.1)

    def test_time_that_is_up_ends_it_when_the_last_run_has_ended(self) -> None:
        assert 10 <= expected(last_start=10.5) <= 11.7
        assert expected(last_start=10.5, new_runs=8) == pytest.approx(2, rel=0.05)
        assert expected(last_start=1000.5) == pytest.approx(1001, rel=0.01)
        assert expected(last_start=-5.0) == 0
        assert expected(last_start=-5.0, in_training_s=[0.5]) == pytest.approx(0.5, rel=0.1)

    def test_a_budget_is_spent_by_all_slots_together(self) -> None:
        assert expected(compute_left_s=40.0) == pytest.approx(10.5, abs=0.7)
        assert expected(compute_left_s=0.0, in_training_s=[0.0] * 4) == pytest.approx(1, rel=0.1)

    def test_evaluations_follow_training(self) -> None:
        times = {"evaluated_s": [0.5] * 20}
        assert expected(new_runs=4, eval_slots=4, **times) == pytest.approx(1.5, rel=0.05)
        assert expected(new_runs=4, eval_slots=1, **times) == pytest.approx(3, rel=0.05)
        assert expected(new_runs=400, eval_slots=1, **times) == pytest.approx(200, rel=0.03)
        assert expected(new_runs=0, unevaluated=3, in_evaluation_s=[0.25], **times) == pytest.approx(1.75, rel=0.1)


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert predict(work(), 0.0, 0.8) is None
    assert predict(work(trained_s=[], new_runs=3), 0.0, 0.8) is None


def test_the_same_workload_has_the_same_end() -> None:
    varied = work(trained_s=[1.0, 2.0, 5.0], in_training_s=[0.3], new_runs=30)
    assert predict(varied, 7.0, 0.8) == predict(varied, 7.0, 0.8)


def test_more_observations_and_a_lower_level_make_a_narrower_interval() -> None:
    def width(count: int, level: float) -> float:
        quantiles = [(number + 0.5) / count for number in range(count)]
        times = [math.exp(0.5 * NormalDist().inv_cdf(quantile)) for quantile in quantiles]
        prediction = predict(work(trained_s=times, new_runs=400), 0, level)
        assert prediction is not None
        return prediction.high - prediction.low

    assert width(4, 0.8) > 2 * width(200, 0.8)
    assert width(20, 0.95) > 1.3 * width(20, 0.5)


def remaining_of(choose: random.Random, slots: int, done: int, total: int) -> tuple[Workload, float]:
    """A sweep of log-normal durations at the moment at which `done` of its runs have ended, and how long it goes on."""
    free, runs = [0.0] * slots, []
    for _ in range(total):
        start = heapq.heappop(free)
        runs.append((start, start + choose.lognormvariate(0, 0.5)))
        heapq.heappush(free, runs[-1][1])
    now = sorted(end for _, end in runs)[done - 1]
    started = [(start, end) for start, end in runs if start <= now]
    left = work(
        train_slots=slots,
        trained_s=[end - start for start, end in started if end <= now],
        in_training_s=[now - start for start, end in started if end > now],
        new_runs=total - len(started),
    )
    return left, max(end for _, end in runs) - now


@pytest.mark.parametrize(("slots", "done"), [(1, 12), (4, 12), (4, 60), (16, 60)])
def test_four_of_five_sweeps_end_within_the_interval(slots: int, done: int) -> None:
    choose = random.Random(5)
    hits = []
    for _ in range(100):
        left, truth = remaining_of(choose, slots, done, 100)
        prediction = predict(left, 0.0, 0.8)
        assert prediction is not None
        hits.append(prediction.low <= truth <= prediction.high)
    # Three standard errors of a share of 80 % are 12 %; it is less exact with few observations.
    assert 0.63 <= np.mean(hits) <= 0.93


class TestDurations:
    def test_running_jobs_are_known_to_be_longer(self) -> None:
        """Of 40 jobs that began together the ten shortest have ended: the others take longer, not as long."""
        choose = random.Random(1)
        jobs = sorted(choose.lognormvariate(0, 0.5) for _ in range(40))
        seen, truth = jobs[:10], float(np.mean(jobs))
        ignorant = Durations(seen, [], np.random.default_rng(0)).mean
        knowing = Durations(seen, [seen[-1]] * 30, np.random.default_rng(0)).mean
        assert np.median(ignorant) < 0.65 * truth
        assert 0.7 * truth < np.median(knowing) < 1.4 * truth

    def test_weights_add_up_and_values_go_up(self) -> None:
        guess = Durations([3.0, 1.0, 2.0], [2.5, 0.1], np.random.default_rng(0))
        assert guess.weights.sum(axis=1) == pytest.approx(1.0)
        assert (guess.weights >= 0).all()
        assert (np.diff(guess.values, axis=1)[:, :-17] >= 0).all()

    def test_what_remains_is_never_negative(self) -> None:
        guess = Durations([1.0, 2.0], [0.5, 50.0], np.random.default_rng(0))
        assert (guess.draw_remaining(0.5) > 0).all()
        assert (guess.draw_remaining(50.0) > 0).all()

    @pytest.mark.parametrize("times", [[0.0], [0.0, 0.0], [1e-9], [1e9, 1e9], [0.0, 1e6]])
    def test_extreme_durations_do_no_harm(self, times: list[float]) -> None:
        guess = Durations(times, [max(times)], np.random.default_rng(0))
        assert np.isfinite(guess.draw(5)).all()
        assert np.isfinite(guess.mean).all()
        assert np.isfinite(guess.draw_remaining(max(times))).all()

    @pytest.mark.parametrize("shape", [1.0, 2.0, 5.0])
    def test_the_shape_of_many_is_found_also_where_half_are_still_running(self, shape: float) -> None:
        choose = random.Random(2)
        jobs = [choose.weibullvariate(3.0, shape) for _ in range(2000)]
        middle = float(np.median(jobs))
        ended = np.array([job for job in jobs if job <= middle])
        all_of_them, deviation = fit_shape(np.array(jobs), np.array(jobs))
        half, _ = fit_shape(ended, np.minimum(jobs, middle))
        assert all_of_them == pytest.approx(shape, rel=0.06)
        assert half == pytest.approx(shape, rel=0.12)
        assert 0 < deviation < 0.05


class TestState:
    """What is left to do, as the state of a sweep tells it."""

    @staticmethod
    def state_of(*events: Event, ended: int = 3, **config: Any) -> SweepState:
        runs = [event for index in range(ended) for event in run_events(index, at=START + index * HOUR)]
        log = [sweep_created(**config), *runs, *events]
        return fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(log, start=1)])

    def test_runs_are_sorted_by_what_they_wait_for(self) -> None:
        trained = run_events(3)[:6]
        evaluated = [*run_events(4)[:6], *self.evaluating(4, at=START + 2 * HOUR)]
        training, waiting = run_events(5, at=START + HOUR)[:4], run_events(6)[:1]
        events = [*trained, *evaluated, *training, *waiting]
        target = CommandTarget(argv=["evaluate"])
        left = workload_of(self.state_of(*events, max_trials=10, evaluate=target), START + 4 * HOUR)
        assert left.unevaluated == 1
        assert left.in_evaluation_s == [2 * HOUR]
        assert left.in_training_s == [3 * HOUR]
        assert left.waiting == [0.0]
        assert left.new_runs == 3
        assert left.trained_s == [HOUR] * 5
        assert left.evaluated_s == [0.0] * 3

    @staticmethod
    def evaluating(index: int, at: float) -> list[Event]:
        run_id = ids.run_id(SWEEP, index)
        job_id = ids.job_id(run_id, JobType.EVAL, 1)
        bodies = [ev.JobGranted(job_type=JobType.EVAL, attempt=1), ev.JobStarted(host="node", pid=1, log="log")]
        return [new_event(body, sweep_id=SWEEP, at=at, actor="test", run_id=run_id, job_id=job_id) for body in bodies]

    def test_limits_become_what_is_left_of_them(self) -> None:
        running = run_events(3, at=START + 3 * HOUR)[:4]
        state = self.state_of(*running, max_hours=8, budget_hours=10)
        left = workload_of(state, START + 5 * HOUR)
        assert (left.new_runs, left.last_start, left.compute_left_s) == (None, 3 * HOUR, 5 * HOUR)
        space = SearchSpace.of({"lr": Choice([0.01, 0.02, 0.03])})
        assert workload_of(self.state_of(ended=1, search_space=space), START).new_runs == 2

    def test_room_for_fewer_jobs_means_fewer_slots(self) -> None:
        state = self.state_of(max_trials=10, max_parallel=4)
        assert [workload_of(state, START, room).train_slots for room in (None, 9, 2, 0)] == [4, 4, 2, 1]

    def test_the_scheduler_predicts_the_end_as_a_moment(self) -> None:
        now = START + 3 * HOUR
        prediction = AdaptiveScheduler().predict_completion_time(
            self.state_of(max_trials=11, max_parallel=4), now, level=0.9
        )
        assert prediction is not None
        assert prediction.expected == pytest.approx(now + 2 * HOUR, abs=0.2 * HOUR)
        assert prediction.low <= prediction.expected <= prediction.high
        assert prediction.at.timestamp() == pytest.approx(prediction.expected, abs=1e-3)
        assert prediction.level == 0.9

    def test_a_sweep_that_is_over_ended_when_it_did(self) -> None:
        body = ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done")
        end = new_event(body, sweep_id=SWEEP, at=START + 9, actor="test")
        prediction = AdaptiveScheduler().predict_completion_time(self.state_of(end, max_trials=3), START + 100)
        assert prediction == Completion(expected=START + 9, low=START + 9, high=START + 9, level=0.8)

    def test_before_the_first_run_has_ended_nothing_is_known(self) -> None:
        state = self.state_of(*run_events(0)[:4], ended=0, max_trials=3)
        assert AdaptiveScheduler().predict_completion_time(state, START) is None
