"""Who searches: optimizers of this package, as the controller asks them, and Optuna's through ask and tell.

Both are driven by the same simple model of parallel runs: there are always `parallel` of them on their way, as long as
evaluations are left to start, and the oldest ends first.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from _problems import Problem
from metta.sweep.model.space import Choice, Config, LogUniform, Parameter, Range, SearchSpace, Uniform

if TYPE_CHECKING:
    import optuna

    from metta.sweep.protocols import Optimizer

#: Peers by name, with the heading of their row.
PEERS = {"optuna-tpe": "Optuna TPE", "optuna-gp": "Optuna GP", "optuna-cmaes": "Optuna CMA-ES"}
#: The peer whose regret after the last evaluation is the mark to reach.
MARK = "optuna-gp"
#: What a search needs no optimizer for.
BASELINE = "random"
#: Events of a run until its job is running: created, granted, dispatched, started.
_EVENTS_TO_START = 4


class Trace(msgspec.Struct, frozen=True):
    """One search, in the order in which its evaluations ended."""

    #: None for a failed one. Fewer than asked for when a finite space is exhausted.
    scores: list[float | None]
    #: Processor time of the optimizer alone: of what it is asked and told, not of the evaluations.
    own_seconds: float


def label(contestant: str) -> str:
    """The heading of its row."""
    return PEERS.get(contestant, contestant)


def version(contestant: str) -> str:
    """Of the peer: what was measured with another one does not count. Empty for our own."""
    if contestant not in PEERS:
        return ""
    from importlib.metadata import version

    return version("optuna")


def missing(contestant: str) -> str | None:
    """What a peer needs and is not installed here."""
    if contestant == "optuna-gp" and find_spec("torch") is None:
        return "PyTorch is not installed"
    return None


def search(contestant: str, problem: Problem, seed: int, evaluations: int, parallel: int) -> Trace:
    """Let a contestant search; equal arguments, equal scores."""
    # Seeds of different problems have nothing in common: a lucky first draw must not count on each of them.
    own_seed = zlib.crc32(f"{problem.name}/{seed}".encode())
    drive = _drive_optuna if contestant in PEERS else _drive_ours
    return drive(contestant, problem, own_seed, evaluations, parallel)


def our_optimizer(contestant: str) -> Optimizer:
    """An optimizer by what stands on the command line: `NAME`, or `NAME,option=value,...` with values in JSON."""
    from metta.sweep import registry
    from metta.sweep.config import parse_strategy
    from metta.sweep.errors import SweepError

    name, *assignments = contestant.split(",")
    options = {}
    for assignment in assignments:
        option, _, value = assignment.partition("=")
        try:
            options[option] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            options[option] = value
    try:
        strategy = parse_strategy(name)
        return registry.optimizer(strategy.optimizer, {**strategy.optimizer_options, **options})
    except SweepError as error:
        raise SystemExit(f"--optimizers: {error}") from error


def _drive_ours(contestant: str, problem: Problem, seed: int, evaluations: int, parallel: int) -> Trace:
    """Through the state of a sweep, folded from the events that controller and agents write; there is no store."""
    from metta.sweep.model.events import Event
    from metta.sweep.model.state import EMPTY, SweepState, fold
    from metta.sweep.protocols import History
    from metta.sweep.testing.sweeps import run_events, sweep_created

    def after(state: SweepState, events: Sequence[Event]) -> SweepState:
        return fold(state, [replace(event, seq=seq) for seq, event in enumerate(events, start=state.seq + 1)])

    optimizer = our_optimizer(contestant)
    created = sweep_created(
        search_space=problem.space,
        direction=problem.direction,
        seed=seed,
        max_trials=evaluations,
        max_parallel=parallel,
    )
    state = after(EMPTY, [created])
    optimizer.check(state.sweep.config)
    trace = Trace([], 0.0)
    seconds = 0.0
    #: What is still to happen to each run on its way.
    pending: deque[list[Event]] = deque()
    while len(trace.scores) < evaluations:
        room = min(parallel - len(pending), evaluations - len(state.runs))
        if room > 0:
            begin = time.process_time()
            suggestions = optimizer.suggest(History.of(state), room)
            seconds += time.process_time() - begin
            for suggestion in suggestions:
                score = problem.score(suggestion.config)
                events = run_events(len(state.runs), config=suggestion.config, score=score)
                state = after(state, events[:_EVENTS_TO_START])
                pending.append(events[_EVENTS_TO_START:])
        if not pending:
            break
        end = pending.popleft()
        state = after(state, end)
        trace.scores.append(state.runs[end[-1].run_id or ""].score)
    return replace(trace, own_seconds=seconds)


def _drive_optuna(contestant: str, problem: Problem, seed: int, evaluations: int, parallel: int) -> Trace:
    """Through a study in memory. Its time includes asking, the parameters' suggestions, and telling."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=problem.direction, sampler=optuna_sampler(contestant, problem.space, seed))
    scores: list[float | None] = []
    seconds = 0.0
    pending: deque[tuple[optuna.Trial, float | None]] = deque()
    started = 0
    while len(scores) < evaluations:
        while len(pending) < parallel and started < evaluations:
            begin = time.process_time()
            trial = study.ask()
            config = suggested(trial, problem.space)
            seconds += time.process_time() - begin
            pending.append((trial, problem.score(config)))
            started += 1
        trial, score = pending.popleft()
        begin = time.process_time()
        if score is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, score)
        seconds += time.process_time() - begin
        scores.append(score)
    return Trace(scores, seconds)


def optuna_sampler(contestant: str, space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """A peer with the settings that its documentation recommends for such a space."""
    import warnings

    import optuna

    samplers = optuna.samplers
    if contestant == "optuna-cmaes":
        return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if contestant == "optuna-gp":
        import torch  # noqa: F401  (the sampler would import it on the clock)

        return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    with warnings.catch_warnings():
        # `multivariate`, `group` and `constant_liar` are experimental, says Optuna.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return samplers.TPESampler(
            seed=seed,
            multivariate=True,
            # Without it, parameters that are not in every trial are drawn at random.
            group=any(parameter.when for parameter in space.parameters.values()),
            constant_liar=True,
        )


def suggested(trial: optuna.trial.BaseTrial, space: SearchSpace) -> Config:
    """What Optuna suggests, parameter by parameter, as its users write it."""
    config: Config = {}
    for name in space.resolution_order:
        if space.is_active(name, config):
            config[name] = _suggested_value(trial, name, space.parameters[name])
    return {name: config[name] for name in space.parameters if name in config}


def _suggested_value(trial: optuna.trial.BaseTrial, name: str, parameter: Parameter) -> Any:
    match parameter:
        case Choice(values=values):
            return trial.suggest_categorical(name, values)
        case Uniform(low=low, high=high):
            return trial.suggest_float(name, low, high)
        case LogUniform(low=low, high=high):
            return trial.suggest_float(name, low, high, log=True)
        case Range(low=int(low), high=int(high), step=step, log=log):
            return trial.suggest_int(name, low, high, step=step or 1, log=log)
        case Range(low=low, high=high, step=step, log=log):
            return trial.suggest_float(name, low, high, step=step, log=log)
    raise TypeError(f"{name}: no problem here has a {type(parameter).__name__}")
