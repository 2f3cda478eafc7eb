"""Hypothesis strategies for the model: parameters, search spaces, and the histories of sweeps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from metta.sweep.errors import InvalidTransition
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event
from metta.sweep.model.run import FailureKind, JobStatus, JobType, Outcome, Parent, RunInfo
from metta.sweep.model.space import (
    Choice,
    Constant,
    LogNormal,
    LogUniform,
    Normal,
    Parameter,
    Range,
    SearchSpace,
    Uniform,
)
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import CommandTarget, Direction, SweepConfig, SweepStatus

#: No deadline for a single example: the suite has to pass on a busy machine.
THOROUGH = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
QUICK = settings(THOROUGH, max_examples=25)

# -------------------------------------------------------------------------------------------------- parameters

#: Points of the unit interval, its ends included.
units = st.one_of(st.sampled_from([0.0, 1.0, math.nextafter(1.0, 0.0)]), st.floats(0.0, 1.0))

finite_floats = st.floats(allow_nan=False, allow_infinity=False)
#: Numbers as people write them, and every other float there is.
bounds = st.one_of(
    st.integers(-10_000, 10_000),
    st.decimals(-100, 100, places=3).map(float),
    finite_floats,
)
positive_bounds = st.one_of(
    st.integers(1, 10_000),
    st.sampled_from([1e-300, 1e-6, 1e-3, 0.1, 1.0, 1e3, 1e300]),
    st.floats(min_value=0.0, exclude_min=True, allow_infinity=False),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite_floats | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def _ordered(numbers: SearchStrategy[Any]) -> SearchStrategy[tuple[Any, Any]]:
    pairs = st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair)))
    return pairs.filter(lambda pair: pair[0] < pair[1] and math.isfinite(pair[1] - pair[0]))


def uniforms() -> SearchStrategy[Uniform]:
    return _ordered(bounds).map(lambda pair: Uniform(*pair))


def _have_different_logarithms(pair: tuple[float, float]) -> bool:
    """Neighbouring floats have one logarithm, and are refused."""
    return math.log(pair[0]) < math.log(pair[1])


def log_uniforms() -> SearchStrategy[LogUniform]:
    return _ordered(positive_bounds).filter(_have_different_logarithms).map(lambda pair: LogUniform(*pair))


def continuous_ranges() -> SearchStrategy[Range]:
    linear = _ordered(finite_floats).map(lambda pair: Range(*pair))
    apart = _ordered(st.floats(1e-300, 1e300)).filter(_have_different_logarithms)
    log = apart.map(lambda pair: Range(*pair, log=True))
    return linear | log


@st.composite
def integer_ranges(draw: DrawFn) -> Range:
    low = draw(st.integers(-20, 20) | st.integers(-(2**70), 2**70))
    step = draw(st.none() | st.integers(1, 5) | st.integers(1, 2**40))
    steps = draw(st.integers(1, 30) | st.integers(1, 2**50 - 1))
    rest = draw(st.integers(0, (step or 1) - 1))
    return Range(low, low + steps * (step or 1) + rest, step=step)


def log_integer_ranges() -> SearchStrategy[Range]:
    numbers = st.integers(1, 30) | st.integers(1, 10**12)
    return _ordered(numbers).map(lambda pair: Range(*pair, log=True))


@st.composite
def stepped_ranges(draw: DrawFn) -> Range:
    """Multiples of a decimal step: tenths, thousandths, thousands, of either sign."""
    scale = draw(st.integers(-12, 12))
    low, step = draw(st.integers(-999, 999)), draw(st.integers(1, 99))
    steps = draw(st.integers(1, 30) | st.integers(1, 10**6))
    rest = draw(st.integers(0, step - 1))
    return Range(*(float(f"{number}e{scale}") for number in (low, low + steps * step + rest, step)))


@st.composite
def choices(draw: DrawFn) -> Choice:
    values = draw(st.lists(json_values, min_size=1, max_size=5, unique_by=repr_of_plain))
    return Choice(values)


def repr_of_plain(value: Any) -> str:
    """Different for values that a Choice tells apart, for `1`, `1.0` and `True` too; the same for `0.0` and `-0.0`."""
    if isinstance(value, dict):
        return repr(sorted((key, repr_of_plain(item)) for key, item in value.items()))
    if isinstance(value, list):
        return repr([repr_of_plain(item) for item in value])
    return repr(value + 0.0 if isinstance(value, float) else value)


@st.composite
def normals(draw: DrawFn) -> Normal:
    mean = draw(st.integers(-100, 100) | st.floats(-1e300, 1e300))
    std = draw(st.floats(0.001, 10.0) | st.floats(0.0, 1e300, exclude_min=True))
    return Normal(mean, max(std, 1e-7 * abs(mean)))


@st.composite
def log_normals(draw: DrawFn) -> LogNormal:
    mean = draw(st.floats(-600.0, 600.0))
    std = draw(st.floats(0.001, 20.0) | st.just(0.0))
    return LogNormal(mean, max(std, 1e-7 * max(1.0, abs(mean))))


def constants() -> SearchStrategy[Constant]:
    return json_values.map(Constant)


def numbers() -> SearchStrategy[Parameter]:
    """Any parameter whose values are ordered."""
    return st.one_of(
        uniforms(),
        log_uniforms(),
        continuous_ranges(),
        integer_ranges(),
        log_integer_ranges(),
        stepped_ranges(),
        normals(),
        log_normals(),
    )


def parameters() -> SearchStrategy[Parameter]:
    """Any parameter at all."""
    return numbers() | choices() | constants()


# ------------------------------------------------------------------------------------------------------ spaces

_NAMES = ("lr", "model", "model_size", "opt.name", "opt.beta", "data.aug.kind", "data.aug.rate")


def small_parameters() -> SearchStrategy[Parameter]:
    """Parameters with few values, for spaces whose configurations are to be counted."""
    return st.one_of(
        st.lists(st.sampled_from(["a", "b", 1, 1.0, True, [1], None]), min_size=1, max_size=3, unique_by=repr).map(
            Choice
        ),
        st.tuples(st.integers(-2, 2), st.integers(1, 3)).map(lambda pair: Range(pair[0], sum(pair))),
        st.sampled_from([Range(0.0, 1.0, step=0.5), Range(0.1, 0.3, step=0.1), Range(1, 4, log=True), Constant("c")]),
    )


@st.composite
def spaces(draw: DrawFn, of: SearchStrategy[Parameter] | None = None, *, parents_first: bool = False) -> SearchSpace:
    """Spaces whose parameters exist on conditions, chained and alternative, declared in any order."""
    names = draw(st.lists(st.sampled_from(_NAMES), min_size=1, max_size=6, unique=True))
    members: dict[str, Parameter] = {}
    for name in names:
        parameter = draw(parameters() if of is None else of)
        parents = [parent for parent, of_parent in members.items() if of_parent.cardinality is not None]
        chosen = draw(st.lists(st.sampled_from(parents), max_size=2, unique=True)) if parents else []
        when = {parent: draw(_conditions(members[parent])) for parent in chosen}
        fields = {field: getattr(parameter, field) for field in parameter.__struct_fields__}
        members[name] = type(parameter)(**{**fields, "when": when})
    order = names if parents_first else draw(st.permutations(names))
    return SearchSpace(parameters={name: members[name] for name in order})


@st.composite
def _conditions(draw: DrawFn, parent: Parameter) -> Any:
    values = [parent.decode(draw(units)) for _ in range(draw(st.integers(1, 3)))]
    # A bare list would be read as alternatives, unless the parent can take it.
    return values if len(values) > 1 or draw(st.booleans()) else values[0]


# --------------------------------------------------------------------------------------------------- histories

SWEEP = "sw33p"
#: 2023-11-14. Times and durations are quarters of a second, so that their sums are exact.
START = 1_700_000_000.0
RUN_IDS = tuple(ids.run_id(SWEEP, index) for index in range(4))
GRID = SearchSpace.of({"x": Range(0, 9)})


def sweep_config(direction: Direction = "maximize", **fields: Any) -> SweepConfig:
    defaults: dict[str, Any] = {
        "name": "demo",
        "target": CommandTarget(argv=["train"]),
        "search_space": GRID,
        "metric": "reward",
        "seed": 7,
        "max_parallel": 2,
        "directory": "/sweeps/demo",
        "working_directory": "/code",
    }
    return SweepConfig(**{**defaults, "direction": direction, **fields})


def event(body: Body, *, seq: int, run_id: str | None = None, job_id: str | None = None, at: float = START) -> Event:
    return Event(
        id=f"event-{seq}", seq=seq, sweep_id=SWEEP, run_id=run_id, job_id=job_id, at=at, actor="test", body=body
    )


def created(direction: Direction = "maximize", **fields: Any) -> Event:
    return event(ev.SweepCreated(config=sweep_config(direction, **fields)), seq=1)


_seconds = st.integers(0, 40).map(lambda quarters: quarters / 4)
_scores = st.integers(-3, 3).map(float)
_steps = st.integers(0, 3)
_metrics = st.dictionaries(st.sampled_from(["reward", "loss"]), _scores, min_size=1)
_signatures = st.sampled_from(["ValueError at train.py:7", "KeyError at train.py:9", None])
_failures = st.none() | st.sampled_from(FailureKind)
_exits = st.builds(
    ev.JobExited, outcome=st.sampled_from(Outcome), seconds=_seconds, failure=_failures, signature=_signatures
)
_good_exits = st.builds(ev.JobExited, outcome=st.just(Outcome.SUCCEEDED), seconds=_seconds)
_grants = st.builds(ev.JobGranted, job_type=st.sampled_from(JobType), attempt=st.integers(1, 3))
_job_bodies = st.one_of(
    st.just(ev.JobDispatched(dispatcher="local")),
    st.just(ev.JobStarted(host="node", pid=4321, log="log")),
    st.builds(ev.MetricsReported, metrics=_metrics),
    _exits,
    st.builds(ev.JobLost, reason=st.just("its agent is gone"), failure=_failures),
    st.builds(
        ev.CheckpointSaved, step=_steps, path=st.just("checkpoint"), sha256=st.just("0" * 64), size_bytes=st.just(1)
    ),
    st.builds(
        ev.CheckpointCopied,
        source=st.sampled_from(RUN_IDS),
        step=_steps,
        path=st.just("checkpoint"),
        sha256=st.just("0" * 64),
        size_bytes=st.just(1),
        score=st.none() | _scores,
    ),
)
_run_bodies = st.one_of(
    st.builds(ev.RunCompleted, score=_scores),
    st.builds(ev.RunFailed, reason=st.just("no reward"), partial_score=st.none() | _scores, signature=_signatures),
    st.just(ev.RunCancelled(reason="stopped")),
    st.builds(ev.RunRequeued, reason=st.just("resumed"), checkpoint=st.none() | _steps),
    st.builds(
        ev.RunRetryScheduled,
        retry_at=st.just(START + 60),
        retry_count=st.integers(0, 3),
        reason=st.just("it may pass"),
        memory_gb=st.sampled_from([None, 2.0, 4.0]),
    ),
    st.builds(ev.CheckpointDeleted, step=_steps, reason=st.just("too many")),
    st.just(ev.RunRestored(reason="no mistake")),
    st.builds(ev.RunRescored, reason=st.just("another metric"), score=st.none() | _scores),
)
_creations = st.builds(ev.RunCreated, index=st.integers(0, 4), config=st.builds(lambda x: {"x": x}, st.integers(0, 9)))
_endings = st.builds(
    ev.SweepEnded, status=st.sampled_from([SweepStatus.COMPLETED, SweepStatus.STOPPED]), reason=st.just("done")
)
_sweep_bodies = st.one_of(
    st.just(ev.SweepResumed()),
    st.builds(ev.SweepResumed, changes=st.builds(lambda n: {"max_trials": n}, st.integers(1, 9))),
    st.just(ev.SweepStopRequested(reason="the user asked")),
    st.just(ev.SweepPaused(reason="the user asked")),
    st.just(ev.DispatchFailed(dispatcher="local", reason="no such partition", retry_at=START + 8)),
    _endings,
    st.just(ev.ControllerStarted(host="node", pid=1, fence=1, version="0.1.0")),
    st.just(ev.ControllerStopped(reason="interrupted")),
    st.builds(
        ev.Notified,
        channel=st.sampled_from(["$SLACK_URL", "apprise.yml"]),
        through=st.integers(-1, 20),
        title=st.sampled_from(["", "2 runs failed"]),
        best_score=st.none() | st.floats(-1.0, 1.0) | st.just(math.nan),
        once=st.lists(st.sampled_from(["budget_hours=8", "max_hours=2"]), max_size=2).map(tuple),
    ),
)


@st.composite
def next_events(draw: DrawFn, state: SweepState) -> Event:
    """An event that might come next: mostly one that fits the state of some run, sometimes any at all."""
    usual = ["fitting"] * 12 + ["creation"] * 2
    kind = draw(st.sampled_from([*usual, "sweep", "any run", "any job", "revision", "amendment"]))
    at = START + draw(_seconds)
    runs = list(state.runs.values())
    if kind == "sweep":
        return event(draw(_sweep_bodies), seq=state.seq + 1, at=at)
    if kind == "amendment":
        return event(draw(_amendments(runs, state.sweep.config.direction)), seq=state.seq + 1, at=at)
    if kind == "revision" and runs:
        run = draw(st.sampled_from(sorted(runs, key=lambda run: run.index)))
        return event(draw(_revisions(runs, run, state.sweep.config.direction)), seq=state.seq + 1, run_id=run.run_id)
    if kind == "fitting" and runs:
        run = draw(st.sampled_from(sorted(runs, key=lambda run: run.index)))
        body, job = draw(_fitting(run))
        return event(body, seq=state.seq + 1, run_id=run.run_id, job_id=job, at=at)
    if kind in {"any run", "any job"}:
        run_id = draw(st.sampled_from(RUN_IDS))
        job = ids.job_id(run_id, draw(st.sampled_from(JobType)), draw(st.integers(1, 3)))
        body = draw(_run_bodies | _creations if kind == "any run" else _job_bodies | _grants)
        return event(body, seq=state.seq + 1, run_id=run_id, job_id=job if kind == "any job" else None, at=at)
    parents = st.builds(
        Parent,
        run_id=st.sampled_from(RUN_IDS),
        level=st.sampled_from([1.0, 3.0]),
        step=_steps,
        replaces=st.sampled_from(RUN_IDS),
    )
    body = ev.RunCreated(index=len(runs), config={"x": draw(st.integers(0, 9))}, parent=draw(st.none() | parents))
    return event(body, seq=state.seq + 1, run_id=RUN_IDS[len(runs) % len(RUN_IDS)], at=at)


@st.composite
def _fitting(draw: DrawFn, run: RunInfo) -> tuple[Body, str | None]:
    job = run.open_job
    if job is not None:
        return draw(_good_exits | _job_bodies), job.job_id
    if run.status.ended:
        return draw(_run_bodies), None
    if run.status is not JobStatus.EVAL_DONE_NOT_COMPLETED and draw(st.integers(0, 3)):
        job_type = JobType.TRAIN if run.status is JobStatus.PENDING else JobType.EVAL
        attempt = run.attempts(job_type) + 1
        return ev.JobGranted(job_type=job_type, attempt=attempt), ids.job_id(run.run_id, job_type, attempt)
    return draw(_run_bodies), None


def best_of(runs: Iterable[RunInfo], direction: Direction) -> dict[str, Any]:
    """What an event says of the sweep's best run, if these are the runs that there are."""
    scores = {run.run_id: run.score for run in runs if run.status is JobStatus.COMPLETED}
    best = (max if direction == "maximize" else min)(scores, key=scores.__getitem__, default=None)
    return {"best_run_id": best, "best_score": None if best is None else scores[best]}


@st.composite
def _amendments(draw: DrawFn, runs: list[RunInfo], direction: Direction) -> Body:
    """Whatever is amended, the events say the truth of the best run."""
    spaces = st.sampled_from([GRID, SearchSpace.of({"x": Range(0, 4)}), SearchSpace.of({"x": Uniform(0, 9)})])
    fields = {"metric": st.sampled_from(["reward", "loss"]), "direction": st.sampled_from(["maximize", "minimize"])}
    changes = draw(
        st.fixed_dictionaries({}, optional=fields | {"search_space": spaces.map(msgspec.to_builtins)}),
    )
    return ev.SweepAmended(changes=changes, **best_of(runs, changes.get("direction", direction)))


@st.composite
def _revisions(draw: DrawFn, runs: list[RunInfo], run: RunInfo, direction: Direction) -> Body:
    if draw(st.booleans()):
        others = [other for other in runs if other is not run]
        return ev.RunRolledBack(reason="a mistake", **best_of(others, direction))
    after = {"cost": run.cost + draw(_seconds)}
    return ev.StateRepaired(problem="its cost was wrong", before={"cost": run.cost}, after=after)


@st.composite
def histories(draw: DrawFn, max_events: int = 30) -> list[Event]:
    """The log of a sweep: events each of which fits the state that it met."""
    log = [created(draw(st.sampled_from(["maximize", "minimize"])))]
    state = fold(EMPTY, log)
    for _ in range(draw(st.integers(0, max_events))):
        candidate = draw(next_events(state))
        try:
            state = fold(state, [candidate])
        except InvalidTransition:
            continue
        log.append(candidate)
    return log
