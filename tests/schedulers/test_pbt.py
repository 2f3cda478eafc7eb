"""Populations whose members take over from each other, whatever their runs do and whenever the controller dies."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.controller import revisions
from metta.sweep.controller.decide import Decision
from metta.sweep.dispatchers.simulated import Course, Report, resumed_from
from metta.sweep.errors import ConfigError
from metta.sweep.model import events as ev
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import FailureKind, JobDefinition, JobStatus, Outcome, RetryPolicy, RunInfo
from metta.sweep.model.space import Choice, Constant, Range, SearchSpace, Uniform
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import Strategy, SweepStatus
from metta.sweep.protocols import BranchRun, Wish
from metta.sweep.schedulers.pbt import PopulationScheduler
from metta.sweep.testing import sweep_config
from metta.sweep.testing.sweeps import SWEEP
from schedulers.halving import Halving
from schedulers.populations import (
    EPOCHS,
    FIDELITY,
    LEVELS,
    PopulationSweep,
    Training,
    by_index,
    completed,
    gain,
    lineage,
    most_alive,
)


def slow_ones(job: JobDefinition) -> float:
    """Every third run takes ten times as long."""
    return 600.0 if sum(map(ord, job.run_id)) % 3 == 0 else 60.0


def check_lineage(state: SweepState, population: int) -> None:
    """The runs of a member follow one another without a gap, each from a checkpoint that its parent had then."""
    members = lineage(state)
    assert len(members) <= population
    assert sum(map(len, members)) == len(state.runs)
    for runs in members:
        for before, run in pairwise(runs):
            assert run.parent is not None
            assert before.status in {JobStatus.STOPPED, JobStatus.FAILED}
            check_branch(state, before, run)


def check_branch(state: SweepState, before: RunInfo, run: RunInfo) -> None:
    parent = run.parent
    assert parent is not None
    source = state.runs[parent.run_id]
    assert source.index < run.index
    assert parent.level in FIDELITY.levels
    assert [rung for rung in source.rungs if rung.level <= parent.level] == list(run.rungs[: run.inherited])
    assert any(job.until == parent.level and job.outcome is Outcome.PAUSED for job in source.jobs)
    if before.status is JobStatus.STOPPED:
        # It takes over at the level where the other one was given up, from one that had been better there.
        assert before.rungs[-1].level == parent.level
        assert before.rungs[-1].value < run.rungs[run.inherited - 1].value
    if run.jobs[0].started_at is not None and run.checkpoints:
        assert run.checkpoints[0].step == parent.step


class TestAPopulation:
    def test_all_members_come_to_the_end_and_the_bad_are_replaced_on_the_way(self) -> None:
        sweep = PopulationSweep()
        state = sweep.run()
        assert state.sweep.status is SweepStatus.COMPLETED
        assert state.sweep.reason == "all members of the population have come to their end"
        assert len(completed(state)) == 8
        assert all(run.progress == EPOCHS and len(run.rungs) == len(LEVELS) for run in completed(state))
        check_lineage(state, 8)
        assert most_alive(sweep.log) == 8
        # A fourth of the members at each of the levels, give or take luck.
        assert 4 <= len(state.runs) - 8 <= 12

    def test_a_member_is_trained_as_long_as_one_that_nobody_replaced(self) -> None:
        state = PopulationSweep().run()
        for runs in lineage(state):
            trained = 0.0
            for run, following in zip(runs, [*runs[1:], None], strict=True):
                begun = 0.0 if run.parent is None else run.parent.level
                end = float(EPOCHS) if following is None or following.parent is None else following.parent.level
                trained += end - begun
            assert trained == EPOCHS

    def test_it_does_better_than_the_same_runs_without_it(self) -> None:
        found, alone = PopulationSweep().run(), PopulationSweep(strategy=Strategy(scheduler="fifo"), max_trials=8).run()
        scores = [[run.score for run in completed(state) if run.score is not None] for state in (found, alone)]
        assert max(scores[0]) > max(scores[1])
        assert sum(scores[0]) > sum(scores[1])

    def test_what_a_run_reports_goes_on_from_what_its_parent_had(self) -> None:
        state = PopulationSweep().run()
        for run in by_index(state):
            if run.parent is not None and run.score is not None:
                left = EPOCHS - run.parent.level
                assert run.score == pytest.approx(run.rungs[run.inherited - 1].value + left * gain(run.config))

    def test_the_reasons_name_both_runs_and_what_they_had(self) -> None:
        state = PopulationSweep().run()
        run = next(run for run in by_index(state) if run.parent is not None)
        assert run.parent is not None
        reason = state.runs[run.parent.replaces].stop_reason
        assert reason is not None
        assert reason.startswith(f"{run.parent.replaces} was number ")
        assert f"in its place a run goes on from {run.parent.run_id}, which had " in reason

    def test_members_share_the_slots_that_there_are_and_stay_together(self) -> None:
        sweep = PopulationSweep(max_parallel=2)
        state = EMPTY
        for event in sweep.run() and sweep.log:
            state = fold(state, [event])
            ahead = [len(run.rungs) for run in state.runs.values() if not run.status.ended]
            assert not ahead or max(ahead) - min(ahead) <= 1

    def test_all_that_others_may_need_is_kept(self) -> None:
        """With equal runs in lockstep: the last checkpoint, until the last one has come there or may go back there."""
        state = PopulationSweep().run()
        kept = [job.keep for run in by_index(state) for job in run.jobs]
        assert any(kept)
        assert all(len(steps) <= 2 for steps in kept)

    def test_a_slow_member_keeps_nobody_waiting(self) -> None:
        ids_of_slow = {"first": ""}

        def one_slow(job: JobDefinition) -> float:
            slow = ids_of_slow["first"] = ids_of_slow["first"] or job.run_id
            return 6000.0 if job.run_id == slow else 60.0

        sweep = PopulationSweep(seconds=one_slow, max_parallel=8)
        state = sweep.run()
        slow = state.runs[ids_of_slow["first"]]
        others = [run for run in completed(state) if run is not slow]
        first = slow.jobs[0].ended_at
        assert first is not None
        assert all(run.ended_at is not None and run.ended_at < first for run in others if run.parent is None)

    @pytest.mark.parametrize("population", [2, 3])
    def test_a_small_population_works_too(self, population: int) -> None:
        state = PopulationSweep({"population": population}).run()
        assert len(completed(state)) == population
        assert len(state.runs) > population
        check_lineage(state, population)

    def test_without_a_metric_at_the_levels_all_go_on(self) -> None:
        state = PopulationSweep(metric="another").run()
        assert state.sweep.counts == {JobStatus.FAILED: 8}

    def test_seconds_of_training_are_a_resource_too(self) -> None:
        def course(job: JobDefinition) -> Course:
            begun = resumed_from(job)
            times = range(begun + 60, 1201, 60)
            reports = [Report(float(at - begun), {"reward": at * gain(job.config)}) for at in times]
            return Course(reports=reports, seconds=float(1200 - begun))

        fidelity = Fidelity(resource="seconds", maximum=1200, grace_period=240, interval=240)
        state = PopulationSweep(fidelity=fidelity, model=course).run()
        assert len(completed(state)) == 8
        assert len(state.runs) > 8
        for run in completed(state):
            assert [rung.level for rung in run.rungs] == [240, 480, 720, 960]
            assert run.seconds == pytest.approx(1200, abs=5)


class TestLimits:
    def test_with_all_trials_used_members_go_on_as_they_are(self) -> None:
        state = PopulationSweep(max_trials=10).run()
        assert len(state.runs) == 10
        assert len(completed(state)) == 8
        assert state.sweep.status is SweepStatus.COMPLETED

    def test_fewer_trials_than_members_make_a_smaller_population(self) -> None:
        state = PopulationSweep(max_trials=3).run()
        assert state.sweep.counts == {JobStatus.COMPLETED: 3}

    def test_in_a_space_with_fewer_configurations_there_are_fewer_members(self) -> None:
        state = PopulationSweep(search_space=SearchSpace.of({"lr": Choice([0.1, 0.5, 0.9])})).run()
        assert len(completed(state)) == 3
        check_lineage(state, 3)

    def test_when_the_hours_are_used_up_nobody_is_left_waiting(self) -> None:
        state = PopulationSweep(budget_hours=1.0, max_parallel=2).run()
        assert state.sweep.status is SweepStatus.COMPLETED
        assert "budget_hours" in (state.sweep.reason or "")
        assert set(state.sweep.counts) <= {JobStatus.STOPPED, JobStatus.COMPLETED}


class TestTrouble:
    def test_a_run_that_fails_for_good_is_replaced_by_one_that_goes_on_from_another(self) -> None:
        sweep = PopulationSweep(trouble={"failure_rate": 0.15, "seed": 5})
        state = sweep.run()
        failed = [run for run in by_index(state) if run.status is JobStatus.FAILED]
        replaced = {run.parent.replaces for run in by_index(state) if run.parent is not None}
        assert failed
        assert {run.run_id for run in failed} <= replaced
        assert len(completed(state)) == 8
        check_lineage(state, 8)

    def test_where_all_fail_the_sweep_ends(self) -> None:
        """Also those that take the place of others, until there is nobody left to go on from."""
        state = PopulationSweep(trouble={"failure_rate": 1.0}).run()
        assert set(state.sweep.counts) == {JobStatus.FAILED, JobStatus.STOPPED}
        assert state.sweep.status is SweepStatus.COMPLETED

    def test_where_nobody_saves_checkpoints_nobody_is_replaced(self) -> None:
        state = Halving(Strategy(scheduler="pbt"), lambda index, epoch: index + epoch, max_trials=40).run()
        assert state.sweep.counts == {JobStatus.COMPLETED: 8}

    @pytest.mark.parametrize("every", [3, 5, 8, 10])
    def test_trials_that_report_seldom_are_replaced_too_and_all_come_to_the_end(self, every: int) -> None:
        def seldom(job: JobDefinition) -> Course:
            course = Training()(job)
            return replace(course, reports=[each for each in course.reports if not each.metrics["epoch"] % every])

        state = PopulationSweep(model=seldom, max_trials=50).run()
        assert len(completed(state)) == 8
        assert {run.status for run in state.runs.values()} == {JobStatus.COMPLETED, JobStatus.STOPPED}
        assert len(state.runs) > 8
        assert all(run.score is not None for run in completed(state))

    @pytest.mark.parametrize("fixed", [[], ["width"]])
    @pytest.mark.parametrize("optimizer", ["random", "bayesian", "pb2"])
    @pytest.mark.parametrize("width", [Choice([256, 512]), Constant(64)])
    def test_the_space_may_be_amended_in_the_middle(
        self, fixed: list[str], optimizer: str, width: Choice | Constant
    ) -> None:
        options = {"explore": "optimizer", "fixed": fixed}
        sweep = PopulationSweep(
            strategy=Strategy(optimizer=optimizer, scheduler="pbt", scheduler_options=options),
            search_space=SearchSpace.of({"lr": Uniform(0.0, 1.0), "width": Choice([64, 128])}),
        )
        space = SearchSpace.of({"lr": Uniform(0.0, 1.0), "width": width})
        sweep.clock.call_at(600.0, "user", lambda: sweep.amend({"search_space": msgspec.to_builtins(space)}))
        state = sweep.run()
        assert len(completed(state)) == 8
        late = [run for run in by_index(state) if run.created_at > 601.0]
        assert late
        for run in late:
            space.check(run.config)

    def test_a_member_whose_copies_cannot_be_loaded_is_given_up(self) -> None:
        def unloadable(job: JobDefinition) -> Course:
            if job.inheritance is None:
                return Training()(job)
            signature = f"RuntimeError {job.run_id}"
            return Course(outcome=Outcome.FAILED, failure=FailureKind.USER_ERROR, seconds=5.0, signature=signature)

        state = PopulationSweep(model=unloadable).run()
        assert state.sweep.status is SweepStatus.COMPLETED
        assert completed(state)
        assert max(sum(run.status is JobStatus.FAILED for run in member) for member in lineage(state)) == 3

    def test_somebody_takes_the_place_of_a_run_that_is_rolled_back(self) -> None:
        twin = PopulationSweep()
        twin.run()
        first = next(event.at for event in twin.log if isinstance(event.body, ev.RunCompleted))
        sweep = PopulationSweep()

        def back_to(state: SweepState) -> list[Decision]:
            """All that ended since the first run that was completed, and that run."""
            begin = min(run.ended_at or 0.0 for run in completed(state))
            late = sum(run.status.ended and (run.ended_at or 0.0) >= begin for run in state.runs.values())
            return revisions.roll_back(state, late, "a mistake")

        sweep.clock.call_at(first + 1.0, "user", lambda: sweep.decide(back_to))
        state = sweep.run()
        gone = next(
            run for run in by_index(state) if run.undone is not None and run.undone.status is JobStatus.COMPLETED
        )
        [other] = [run for run in state.runs.values() if run.parent is not None and run.parent.replaces == gone.run_id]
        assert "was rolled back" in next(
            event.body.reasons[0]
            for event in sweep.log
            if isinstance(event.body, ev.RunCreated) and event.run_id == other.run_id
        )
        assert len(completed(state)) == 8

    def test_nobody_goes_on_from_a_run_that_has_failed(self) -> None:
        sweep = PopulationSweep(trouble={"failure_rate": 0.2, "seed": 3})
        state = EMPTY
        for event in sweep.run() and sweep.log:
            state = fold(state, [event])
            if isinstance(event.body, ev.RunCreated) and event.body.parent is not None:
                assert state.runs[event.body.parent.run_id].status is not JobStatus.FAILED

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        population=st.integers(2, 12),
        parallel=st.integers(1, 9),
        quantile=st.sampled_from([0.1, 0.25, 0.5]),
        trials=st.none() | st.integers(2, 30),
        slow=st.booleans(),
        rates=st.sampled_from([{}, {"failure_rate": 0.1}, {"preemption_rate": 0.2}, {"straggler_rate": 0.3}]),
    )
    def test_whatever_happens_every_run_ends_and_every_member_has_one_at_a_time(
        self,
        seed: int,
        population: int,
        parallel: int,
        quantile: float,
        trials: int | None,
        slow: bool,
        rates: dict[str, float],
    ) -> None:
        sweep = PopulationSweep(
            {"population": population, "quantile": quantile},
            seconds=slow_ones if slow else lambda _: 60.0,
            trouble=rates,
            seed=seed,
            max_parallel=parallel,
            max_trials=trials,
            retry=RetryPolicy(retry_delay_seconds=1.0),
        )
        state = sweep.run()
        assert state.sweep.status is SweepStatus.COMPLETED
        assert all(run.status.ended for run in state.runs.values())
        assert most_alive(sweep.log) <= population
        check_lineage(state, population)
        founders = min(population, trials or population)
        if "failure_rate" not in rates:
            assert len(completed(state)) == founders
        for run in state.runs.values():
            # A level is trained up to once, but for attempts that were lost on the way.
            levels = [job.until for job in run.jobs if job.outcome in {Outcome.PAUSED, Outcome.SUCCEEDED}]
            assert len(levels) == len(set(levels))
            # Whoever tries again what was lost keeps what had to be kept.
            assert len({(job.until, job.keep) for job in run.jobs}) == len({job.until for job in run.jobs})


class TestDecisions:
    def test_equal_seeds_make_equal_logs(self) -> None:
        logs = []
        for seed in (1, 1, 2):
            sweep = PopulationSweep(seed=seed, trouble={"failure_rate": 0.1, "straggler_rate": 0.2})
            sweep.run()
            logs.append(sweep.text)
        assert logs[0] == logs[1] != logs[2]

    @pytest.mark.parametrize("seed", [3, 4])
    def test_a_scheduler_that_has_seen_nothing_wishes_the_same_at_every_event(self, seed: int) -> None:
        """As after a restart: what one remembers only saves time."""
        sweep = PopulationSweep(seed=seed, seconds=slow_ones, trouble={"failure_rate": 0.1})
        sweep.run()
        state, old = EMPTY, PopulationScheduler()
        for event in sweep.log:
            state = fold(state, [event])
            if not state.sweep.status.ended:
                assert PopulationScheduler().schedule(state, None) == old.schedule(state, None)

    def test_who_is_judged_is_judged_by_those_that_came_before(self) -> None:
        """Or, of the first half of the population, by that half; whatever is known later changes nothing."""
        sweep = PopulationSweep(seconds=slow_ones)
        state = sweep.run()
        arrivals: dict[float, list[tuple[int, float, str]]] = {}
        for run in by_index(state):
            for rung in run.rungs[run.inherited :]:
                arrivals.setdefault(rung.level, []).append((rung.seq, rung.value, run.run_id))
        for level, came in arrivals.items():
            came.sort()
            replaced = {run.parent.replaces for run in by_index(state) if run.parent and run.parent.level == level}
            for position, (_, value, run_id) in enumerate(came):
                pool = [other for _, other, _ in came[: max(4, position + 1)]]
                worst = max(1, len(pool) // 4)
                assert (run_id in replaced) == (sum(other > value for other in pool) >= len(pool) - worst)

    def test_a_verdict_waits_for_the_checkpoint_of_one_that_has_come_to_the_level_and_still_runs(self) -> None:
        """Or it would depend on how soon the controller looks."""
        sweep = PopulationSweep({"population": 2}, max_parallel=2)
        sweep.run()
        exits = [event for event in sweep.log if isinstance(event.body, ev.JobExited)]
        reports = [event for event in sweep.log if isinstance(event.body, ev.MetricsReported)]
        at_level = [event for event in reports if event.body.metrics["epoch"] == LEVELS[0]]  # type: ignore[union-attr]
        best, worst = sorted(at_level, key=lambda event: -event.body.metrics["reward"])[:2]  # type: ignore[union-attr]
        created = [event for event in sweep.log if event.seq < at_level[0].seq and event not in reports]
        branched = next(event for event in sweep.log if isinstance(event.body, ev.RunStopped))
        [saved] = [
            event
            for event in sweep.log
            if isinstance(event.body, ev.CheckpointSaved) and event.run_id == best.run_id and event.body.step == 4
        ]
        first_exit = {event.run_id: event for event in reversed(exits)}
        log = [*created, best, worst, first_exit[worst.run_id]]
        assert branched.run_id == worst.run_id
        assert self.wishes(log) == []
        [branch] = [wish for wish in self.wishes([*log, saved, first_exit[best.run_id]]) if isinstance(wish, BranchRun)]
        assert (branch.parent.run_id, branch.parent.replaces) == (best.run_id, worst.run_id)

    def wishes(self, log: list[ev.Event]) -> list[Wish]:
        """Of a scheduler when these events have happened."""
        events = [replace(event, seq=seq) for seq, event in enumerate(log, start=1)]
        return PopulationScheduler(population=2).schedule(fold(EMPTY, events), None)

    @pytest.mark.parametrize("stop_at", [30, 100, 170, 240])
    def test_a_controller_that_takes_over_goes_on_with_the_same_population(self, stop_at: int) -> None:
        sweep = PopulationSweep(trouble={"failure_rate": 0.1})
        first = sweep.controller()
        while len(sweep.log) < stop_at:
            first.step()
            sweep.store.wait_for_change(SWEEP, first.state.seq, 1.0)
        state = sweep.run()
        assert len(completed(state)) == 8
        check_lineage(state, 8)
        assert most_alive(sweep.log) == 8


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"population": 1}, "population is a whole number from 2 to 100000, got 1"),
            ({"population": True}, "population is a whole number from 2 to 100000, got True"),
            ({"quantile": 0.6}, "quantile is a number above 0, up to 0.5, got 0.6"),
            ({"quantile": "0.2"}, "quantile is a number above 0, up to 0.5, got '0.2'"),
            ({"resample_probability": 2}, "resample_probability is a number from 0 to 1, got 2"),
            ({"perturbation": []}, "perturbation is a list of factors above 0, such as [0.8, 1.2], got []"),
            ({"perturbation": [0]}, "perturbation is a list of factors above 0, such as [0.8, 1.2], got [0]"),
            ({"explore": "optimiser"}, "explore cannot be 'optimiser'; did you mean 'optimizer'?"),
            ({"fixed": "width"}, "fixed is a list of names of parameters, got 'width'"),
        ],
    )
    def test_what_is_wrong_is_said(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            PopulationScheduler(**options)
        assert message in str(caught.value)

    def test_a_sweep_needs_levels_and_what_is_fixed_has_to_be_a_parameter(self) -> None:
        with pytest.raises(ConfigError, match="fidelity: is missing"):
            PopulationScheduler().check(sweep_config())
        with pytest.raises(ConfigError, match="there is no level below the maximum"):
            PopulationScheduler().check(sweep_config(fidelity=Fidelity(maximum=1)))
        with pytest.raises(ConfigError, match="fixed names 'lrr', which is no parameter; did you mean 'lr'"):
            PopulationScheduler(fixed=["lrr"]).check(sweep_config(fidelity=FIDELITY))

    def test_what_is_fixed_goes_with_the_weights(self) -> None:
        space = SearchSpace.of({"lr": Uniform(0.0, 1.0), "width": Range(1, 1000)})
        for explore in ("perturb", "optimizer"):
            state = PopulationSweep({"fixed": ["width"], "explore": explore}, search_space=space).run()
            branches = [run for run in by_index(state) if run.parent is not None]
            assert branches
            for run in branches:
                assert run.parent is not None
                assert run.config["width"] == state.runs[run.parent.run_id].config["width"]

    def test_the_optimizer_of_the_sweep_may_choose_the_new_values(self) -> None:
        asked, perturbed = PopulationSweep({"explore": "optimizer"}), PopulationSweep()
        for sweep, has_asked in ((asked, True), (perturbed, False)):
            sweep.run()
            bodies = [event.body for event in sweep.log if isinstance(event.body, ev.RunCreated)]
            branches = [body for body in bodies if body.parent is not None]
            assert branches
            assert all((f"random draw {body.index}" in body.reasons) is has_asked for body in branches)

    def test_where_the_optimizer_has_nothing_left_the_perturbed_values_hold(self) -> None:
        space = SearchSpace.of({"lr": Choice([0.1, 0.3, 0.5, 0.7, 0.9])})
        state = PopulationSweep({"explore": "optimizer"}, search_space=space).run()
        assert len(completed(state)) == 5
        assert len(state.runs) > 5
