"""How long one suggestion takes after 100, 1,000, 10,000 and 100,000 observations, ours and Optuna's.

Of a fresh optimizer, as after a restart of the controller, and of one that was asked before and finds one more
observation each time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

# As one trial beside others would have it; numpy's threads do not pay for themselves at these sizes.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

if TYPE_CHECKING:
    import optuna

    from _measure import Report
    from metta.sweep.model.space import Config, SearchSpace
    from metta.sweep.model.state import SweepState

_SIZES = (100, 1_000, 10_000, 100_000)
#: Milliseconds that the median may take at most.
_GOALS_MS = {100: 20.0, 1_000: 60.0, 10_000: 100.0, 100_000: 100.0}
_CEILING_MS = 1_000.0
#: Time for all suggestions of one optimizer at one size; a peer that would need it for a single one is left out.
_PATIENCE_S = 20.0
_PEERS = ("optuna-tpe", "optuna-gp")


@dataclass(frozen=True)
class Timing:
    """Wall seconds of single suggestions."""

    #: First ones of fresh optimizers.
    cold_s: list[float]
    #: Those that followed, each after one more observation.
    warm_s: list[float]
    #: Processor seconds of all of them, which other processes disturb less.
    processor_s: list[float]

    @property
    def median_ms(self) -> float:
        """Of all suggestions."""
        return median([*self.cold_s, *self.warm_s]) * 1e3

    @property
    def slowest_ms(self) -> float:
        """Of all suggestions."""
        return max([*self.cold_s, *self.warm_s]) * 1e3


def main() -> None:
    from _contestants import our_optimizer
    from _measure import Report, parse_arguments

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--optimizers", nargs="+", default=["bayesian"], help="of this package, by their registered names (bayesian)"
    )
    parser.add_argument("--against", nargs="*", choices=_PEERS, default=_PEERS, help="peers (all)")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"numbers of observations ({' '.join(map(str, _SIZES))})")
    parser.add_argument("--parameters", type=int, nargs="+", help="of the spaces, in tens (10 30)")
    parser.add_argument("--fresh", type=int, help="fresh optimizers for each figure (3; 2 with --quick)")
    parser.add_argument("--suggestions", type=int, help="of each fresh optimizer (11; 4 with --quick)")
    options = parse_arguments(parser)
    options.sizes = sorted(options.sizes or _SIZES[: 3 if options.quick else None])
    options.parameters = options.parameters or ([10] if options.quick else [10, 30])
    options.fresh = options.fresh or (2 if options.quick else 3)
    options.suggestions = options.suggestions or (4 if options.quick else 11)
    for optimizer in options.optimizers:
        our_optimizer(optimizer)

    report = Report(f"One suggestion: {options.fresh} fresh optimizers, {options.suggestions} suggestions of each")
    report.details = []
    for parameters in options.parameters:
        ours = _time_ours(parameters, options)
        peers = {peer: _time_peer(peer, parameters, options) for peer in options.against}
        for size in options.sizes:
            for optimizer in options.optimizers:
                timing = ours[optimizer, size]
                of_peers = {peer: timings[size] for peer, timings in peers.items()}
                name = f"{optimizer}, {parameters} parameters, {size:,} observations"
                _add(report, name, timing, of_peers, goal_ms=_GOALS_MS.get(size))
                report.details.append({"name": name, "ours": timing, **of_peers})
    report.finish(options.json, options.folder)


def _add(report: Report, name: str, timing: Timing, peers: dict[str, Timing | str], goal_ms: float | None) -> None:
    from _contestants import label

    tpe = peers.get("optuna-tpe")
    notes = [f"cold {median(timing.cold_s) * 1e3:.1f} ms, warm {median(timing.warm_s or timing.cold_s) * 1e3:.1f} ms"]
    notes.append(f"processor time {median(timing.processor_s) * 1e3:.1f} ms")
    for peer, found in peers.items():
        said = found if isinstance(found, str) else f"{found.median_ms:.0f} ms, slowest {found.slowest_ms:.0f} ms"
        notes.append(f"{label(peer)} {said}")
    report.add(
        f"{name}: median",
        timing.median_ms,
        "ms",
        at_most=goal_ms,
        peer=label("optuna-tpe") if isinstance(tpe, Timing) else None,
        peer_value=tpe.median_ms if isinstance(tpe, Timing) else None,
        note="; ".join(notes),
    )
    report.add(f"{name}: slowest", timing.slowest_ms, "ms", at_most=_CEILING_MS)


# ------------------------------------------------------------------------------------------------------------ the sweep


def mixed_space(parameters: int) -> SearchSpace:
    """Tens of parameters of all kinds."""
    from metta.sweep.model.space import Choice, LogUniform, Range, SearchSpace, Uniform

    ten = {
        "lr": LogUniform(1e-5, 1e-1),
        "decay": LogUniform(1e-6, 1e-2),
        "dropout": Uniform(0.0, 0.5),
        "momentum": Uniform(0.0, 0.99),
        "batch": Range(16, 1024, log=True),
        "layers": Range(1, 8),
        "clip": Range(0.1, 2.0, step=0.1),
        "activation": Choice(["relu", "gelu", "tanh", "silu"]),
        "optimizer": Choice(["adam", "sgd", "lion"]),
        "norm": Choice([True, False]),
    }
    return SearchSpace.of({f"block{block}": ten for block in range(max(1, parameters // 10))})


def _runs(space: SearchSpace) -> Iterator[tuple[Config, float]]:
    """Configurations and their scores, as a search leaves them: half of them anywhere, half near the best."""
    import numpy as np

    generator = np.random.default_rng(0)
    dimensions = len(space.dimensions)
    best = generator.random(dimensions)
    while True:
        units = generator.random((512, dimensions))
        units[::2] = np.clip(best + 0.1 * generator.standard_normal((256, dimensions)), 0.0, 1.0)
        scores = -((units - best) ** 2).sum(axis=1) + 0.02 * generator.standard_normal(len(units))
        for point, score in zip(units.tolist(), scores.tolist(), strict=True):
            yield space.decode(point), score


def _after_run(state: SweepState, config: Config, score: float) -> SweepState:
    """The sweep when that run is completed: all seven events of its life are folded, as a controller folds them.

    That takes some 150 microseconds, a quarter of a minute for 100,000 runs: no need to build a state in any other way.
    """
    from msgspec.structs import replace

    from metta.sweep.model.state import fold
    from metta.sweep.testing.sweeps import run_events

    events = run_events(len(state.runs), config=config, score=score)
    return fold(state, [replace(event, seq=seq) for seq, event in enumerate(events, start=state.seq + 1)])


def _new_sweep(space: SearchSpace) -> SweepState:
    from msgspec.structs import replace

    from metta.sweep.model.state import EMPTY, fold
    from metta.sweep.testing.sweeps import sweep_created

    return fold(EMPTY, [replace(sweep_created(search_space=space, direction="maximize"), seq=1)])


# ----------------------------------------------------------------------------------------------------------- the clock


def _time_ours(parameters: int, options: argparse.Namespace) -> dict[tuple[str, int], Timing]:
    from _contestants import our_optimizer
    from metta.sweep.protocols import History

    space = mixed_space(parameters)
    runs = _runs(space)
    state = _new_sweep(space)
    timings = {}
    for size in options.sizes:
        print(f"{parameters} parameters, {size:,} observations", file=sys.stderr, flush=True)
        while len(state.runs) < size:
            state = _after_run(state, *next(runs))
        for name in options.optimizers:
            # What is imported at the first suggestion only is a matter of the controller's start.
            our_optimizer(name).suggest(History.of(_few_runs(space)), 1)
            timings[name, size] = _timed(
                [_Ours(our_optimizer(name), state, runs).suggest for _ in range(options.fresh)], options.suggestions
            )
    return timings


def _few_runs(space: SearchSpace) -> SweepState:
    state = _new_sweep(space)
    for (config, score), _ in zip(_runs(space), range(30), strict=False):
        state = _after_run(state, config, score)
    return state


@dataclass
class _Ours:
    """An optimizer of this package in a sweep that goes on."""

    optimizer: Any
    state: SweepState
    runs: Iterator[tuple[Config, float]]

    def suggest(self) -> tuple[float, float]:
        """Wall and processor seconds of one suggestion; then the run is done, with some score."""
        from metta.sweep.protocols import History

        begin, processor = time.perf_counter(), time.process_time()
        [suggestion] = self.optimizer.suggest(History.of(self.state), 1)
        taken = time.perf_counter() - begin, time.process_time() - processor
        self.state = _after_run(self.state, suggestion.config, next(self.runs)[1])
        return taken


def _time_peer(peer: str, parameters: int, options: argparse.Namespace) -> dict[int, Timing | str]:
    """By size the timing, or why there is none."""
    import optuna

    from _contestants import missing

    if lack := missing(peer):
        return dict.fromkeys(options.sizes, f"not run: {lack}")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = mixed_space(parameters)
    runs = _runs(space)
    study = optuna.create_study(direction="maximize")
    timings: dict[int, Timing | str] = {}
    before: tuple[int, float] | None = None
    for size in options.sizes:
        # Even one whose time grows only with the number of observations would be too slow.
        if before is not None and before[1] * size / before[0] > _PATIENCE_S:
            timings[size] = f"not run: {before[1]:.1f} s at {before[0]:,}"
            continue
        print(f"{parameters} parameters, {size:,} observations, {peer}", file=sys.stderr, flush=True)
        _fill(study, space, runs, size)
        if before is None:
            # As with ours, imports do not count.
            _Peer(peer, 0, study, space, runs).suggest()
        fresh = [_Peer(peer, seed, study, space, runs).suggest for seed in range(options.fresh)]
        timings[size] = timing = _timed(fresh, options.suggestions)
        before = size, timing.median_ms / 1e3
    return timings


def _fill(study: optuna.Study, space: SearchSpace, runs: Iterator[tuple[Config, float]], size: int) -> None:
    import optuna

    from _contestants import suggested

    # A trial that is suggested what it is told, to learn how the parameters look to Optuna.
    example = optuna.trial.FixedTrial(next(runs)[0])
    suggested(example, space)
    trials = []
    for _ in range(size - len(study.get_trials(deepcopy=False))):
        config, score = next(runs)
        trials.append(optuna.create_trial(params=config, distributions=example.distributions, value=score))
    study.add_trials(trials)


class _Peer:
    """A sampler of Optuna's in a study that goes on."""

    def __init__(
        self, peer: str, seed: int, study: optuna.Study, space: SearchSpace, runs: Iterator[tuple[Config, float]]
    ) -> None:
        from _contestants import optuna_sampler

        self._study, self._space, self._runs = study, space, runs
        self._sampler = optuna_sampler(peer, space, seed)

    def suggest(self) -> tuple[float, float]:
        """As of `_Ours`."""
        from _contestants import suggested

        self._study.sampler = self._sampler
        begin, processor = time.perf_counter(), time.process_time()
        trial = self._study.ask()
        suggested(trial, self._space)
        taken = time.perf_counter() - begin, time.process_time() - processor
        self._study.tell(trial, next(self._runs)[1])
        return taken


def _timed(fresh: Sequence[Callable[[], tuple[float, float]]], suggestions: int) -> Timing:
    """The first and further suggestions of each, until patience ends."""
    timing = Timing([], [], [])
    for suggest in fresh:
        for number in range(suggestions):
            if sum(timing.cold_s) + sum(timing.warm_s) > _PATIENCE_S:
                return timing
            wall_s, processor_s = suggest()
            (timing.warm_s if number else timing.cold_s).append(wall_s)
            timing.processor_s.append(processor_s)
    return timing


if __name__ == "__main__":
    main()
