"""The adaptive scheduler's promises, on simulated searches and sweeps.

How often it stops a search too early, how soon one that is over, and how often a sweep ends within the interval that
was predicted for it.
"""

from __future__ import annotations

import argparse
import heapq
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from metta.sweep.schedulers.completion import predict
from metta.sweep.schedulers.convergence import Plateau
from metta.sweep.schedulers.workload import Workload

PATIENCE, TOLERANCE, RATE = 10, 0.01, 0.1
Search = Callable[[np.random.Generator], Sequence[float]]
Duration = Callable[[np.random.Generator], float]


# ------------------------------------------------------------------------- searches; lower is better, 400 evaluations


def barely_worth_it(rng: np.random.Generator) -> Sequence[float]:
    """Each evaluation is a relevant improvement with probability 1 / PATIENCE: the hypothesis at its edge."""
    improves = rng.random(400) < 1 / PATIENCE
    improves[0] = True
    level = -np.cumsum(improves).astype(float)
    return np.where(improves, level, 20 + rng.random(400))


def twice_worth_it(rng: np.random.Generator) -> Sequence[float]:
    improves = rng.random(400) < 2 / PATIENCE
    improves[0] = True
    level = -np.cumsum(improves).astype(float)
    return np.where(improves, level, 20 + rng.random(400))


def exponential(rng: np.random.Generator) -> Sequence[float]:
    """The regret falls by a factor of e in 100 evaluations, with noise in proportion to it."""
    return np.exp(-np.arange(400) / 100) * (1 + np.abs(rng.standard_normal(400)))


def noisy_slope(rng: np.random.Generator) -> Sequence[float]:
    """A steady improvement, of one deviation of the noise in 40 evaluations."""
    return -np.arange(400) / 40 + rng.standard_normal(400)


def lucky_outlier(rng: np.random.Generator) -> Sequence[float]:
    """The same with an early score that the slope itself reaches after 200 evaluations."""
    scores = np.asarray(noisy_slope(rng))
    scores[5] = -5.0
    return scores


def plateau_at(begin: int, noise: float) -> Search:
    def search(rng: np.random.Generator) -> Sequence[float]:
        way = np.exp(-np.minimum(np.arange(400), begin) / (begin / 4))
        return way + noise * np.abs(rng.standard_normal(400))

    return search


def random_search(rng: np.random.Generator) -> Sequence[float]:
    """Independent draws: the t-th is the best with probability 1 / t, soon below 1 / PATIENCE."""
    return rng.standard_normal(400)


STILL_IMPROVING: dict[str, Search] = {
    "improves once in 10 (the bound's edge)": barely_worth_it,
    "improves once in 5": twice_worth_it,
    "regret falls e-fold in 100": exponential,
    "steady slope in noise": noisy_slope,
    "steady slope, lucky early score": lucky_outlier,
}
OVER: dict[str, tuple[Search, int]] = {
    "plateau from 40, no noise": (plateau_at(40, 0.0), 40),
    "plateau from 40, noise 2 % of the range": (plateau_at(40, 0.02), 40),
    "plateau from 40, noise 10 % of the range": (plateau_at(40, 0.1), 40),
    "plateau from 100, noise 2 % of the range": (plateau_at(100, 0.02), 100),
    "random search": (random_search, 0),
}


def stopped_at(scores: Sequence[float], *, trend: bool = True) -> int | None:
    plateau = Plateau(PATIENCE, TOLERANCE, RATE)
    for number, score in enumerate(scores, start=1):
        plateau.add(float(score))
        if plateau.is_reached if trend else plateau.stagnation >= plateau.required:
            return number
    return None


def show_convergence(repeats: int) -> None:
    print(f"stopped within 400 evaluations, {repeats} searches each; patience {PATIENCE}, false_stop_rate {RATE}")
    print(f"{'still improving':44} {'stopped':>8} {'without trend test':>19}")
    for name, search in STILL_IMPROVING.items():
        shares = []
        for trend in (True, False):
            rng = np.random.default_rng(1)
            stops = [stopped_at(search(rng), trend=trend) for _ in range(repeats)]
            shares.append(sum(stop is not None for stop in stops) / repeats)
        print(f"{name:44} {shares[0]:8.1%} {shares[1]:19.1%}")
    print(f"\n{'over':44} {'stopped':>8} {'too early':>10} {'evaluations after its end: 10, 50, 90 %':>42}")
    for name, (search, begin) in OVER.items():
        rng = np.random.default_rng(1)
        stops = [stop for stop in (stopped_at(search(rng)) for _ in range(repeats)) if stop is not None]
        waits = np.quantile(np.array(stops) - begin, [0.1, 0.5, 0.9])
        early = sum(stop < begin for stop in stops) / repeats
        print(f"{name:44} {len(stops) / repeats:8.1%} {early:10.1%} {waits[0]:26.0f}, {waits[1]:5.0f}, {waits[2]:5.0f}")


# ------------------------------------------------------------------------------------------------ times of completion

DURATIONS: dict[str, Duration] = {
    "log-normal, deviation 0.5": lambda rng: math.exp(0.5 * rng.standard_normal()),
    "exponential": lambda rng: rng.exponential(),
    "equal to 2 %": lambda rng: 1 + 0.02 * rng.standard_normal(),
    "a fifth fails at once": lambda rng: 0.1 if rng.random() < 0.2 else 1 + 0.2 * rng.random(),
}
#: Slots, runs that have ended, runs in all.
STAGES = [(1, 3, 40), (1, 10, 100), (1, 50, 100), (4, 10, 100), (4, 50, 100), (4, 95, 100), (4, 50, 1000)]
STAGES += [(32, 10, 100), (32, 64, 200), (32, 190, 200), (32, 64, 1000)]


def remaining(
    rng: np.random.Generator,
    *,
    duration: Duration,
    slots: int,
    done: int,
    total: int | None,
    deadline: float | None = None,
) -> tuple[Workload, float]:
    """A sweep at the end of its `done`-th run, and how long it goes on from there."""
    free, runs = [0.0] * slots, []
    while (total is None or len(runs) < total) and (deadline is None or free[0] < deadline):
        start = heapq.heappop(free)
        runs.append((start, start + max(0.0, duration(rng))))
        heapq.heappush(free, runs[-1][1])
    now = sorted(end for _, end in runs)[done - 1]
    started = [(start, end) for start, end in runs if start <= now]
    work = Workload(
        train_slots=slots,
        eval_slots=1,
        trained_s=[end - start for start, end in started if end <= now][-max(200, 4 * slots) :],
        evaluated_s=[],
        in_training_s=[now - start for start, end in started if end > now],
        in_evaluation_s=[],
        waiting=[],
        unevaluated=0,
        new_runs=None if total is None else total - len(started),
        last_start=None if deadline is None else deadline - now,
        compute_left_s=None,
    )
    return work, max(end for _, end in runs) - now


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, duration in DURATIONS.items():
        for slots, done, total in STAGES:
            yield name, {"duration": duration, "slots": slots, "done": done, "total": total}
    first = next(iter(DURATIONS))
    yield f"{first}, until 60", {"duration": DURATIONS[first], "slots": 4, "done": 20, "total": None, "deadline": 60.0}


def show_completion(repeats: int) -> None:
    print(f"\nshare of {repeats} sweeps that end within the 80 % interval; durations are 1 on average or nearly so")
    print(f"{'durations':34} {'slots':>5} {'ended':>6} {'of':>5} {'within':>7} {'before':>7} {'width':>6} {'ms':>6}")
    for name, case in cases():
        rng = np.random.default_rng(5)
        within, before, widths, spent = [], [], [], []
        for _ in range(repeats):
            work, truth = remaining(rng, **case)
            begin = time.perf_counter()
            found = predict(work, 0.0, 0.8)
            spent.append(time.perf_counter() - begin)
            assert found is not None
            within.append(found.low <= truth <= found.high)
            before.append(truth < found.low)
            widths.append((found.high - found.low) / truth)
        print(
            f"{name:34} {case['slots']:5} {case['done']:6} {case['total'] or '-':>5} {np.mean(within):7.0%} "
            f"{np.mean(before):7.0%} {np.median(widths):6.2f} {1e3 * np.median(spent):6.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the searches and sweeps")
    quick = parser.parse_args().quick
    show_convergence(100 if quick else 1000)
    show_completion(20 if quick else 200)


if __name__ == "__main__":
    main()
