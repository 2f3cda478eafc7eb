"""`@sweep`: a function becomes a sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import update_wrapper
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from metta.sweep.agent.targets import SweepRunReached, is_importing
from metta.sweep.config import Settings, parse_settings
from metta.sweep.config_space import parse_space
from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import SweepStatus

if TYPE_CHECKING:
    import pandas

    from metta.sweep.launch import Definition


class SweepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a sweep."""

    sweep_id: str
    name: str
    status: SweepStatus
    #: Why it ended; None when it was interrupted and can be resumed.
    reason: str | None
    #: The run with the best score, or None when no run has one.
    best: RunInfo | None
    #: All runs, in the order in which they were started.
    runs: list[RunInfo]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a run: its id, status, score and cost, `config.*` and `metrics.*`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        from metta.sweep.errors import MissingExtraError

        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError(
                'to_dataframe needs pandas; install it with: pip install "metta-sweep[pandas]"'
            ) from error
        return pd.DataFrame(
            [
                {
                    "run_id": run.run_id,
                    "status": run.status.value,
                    "score": run.score,
                    "cost": run.cost,
                    **{f"config.{name}": value for name, value in run.config.items()},
                    **{f"metrics.{name}": value for name, value in run.metrics.items()},
                }
                for run in self.runs
            ]
        )


class Sweep:
    """A function and how to sweep it. Calling it calls the function."""

    def __init__(
        self,
        function: Callable[..., Any],
        settings: Settings,
        evaluate: Callable[..., Any] | None,
        *,
        metric_is_inferred: bool = False,
    ) -> None:
        update_wrapper(self, function)
        self.function = function
        self.settings = settings
        self.evaluate = evaluate
        self.metric_is_inferred = metric_is_inferred

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as if it were not decorated."""
        return self.function(*args, **kwargs)

    def run(
        self,
        *,
        store: str | PathLike[str] | None = None,
        name: str | None = None,
        max_trials: int | None = None,
        max_parallel: int | None = None,
        strategy: str | None = None,
        seed: int | None = None,
        progress: bool = True,
    ) -> SweepResult:
        """Run the sweep here and now, or go on with it if an earlier process was killed.

        Args:
            store: File or URL of the store; else METTA_SWEEP_STORE, else `sqlite:///sweeps.db` in the working folder.
            name: Name of the sweep; else that of the decorator, else the file's.
            max_trials: Instead of the decorator's.
            max_parallel: Instead of the decorator's.
            strategy: Instead of the decorator's.
            seed: Instead of the decorator's.
            progress: Show progress on standard error.

        Raises:
            UsageError: a setting is not valid, or a controller is at work on the sweep already.
        """
        if is_importing():
            raise SweepRunReached
        from metta.sweep.display.progress import run_with_progress
        from metta.sweep.errors import LeaseHeldError
        from metta.sweep.launch import check, launch
        from metta.sweep.stores import open_store, store_url

        overrides = {
            "name": name,
            "max_trials": max_trials,
            "max_parallel": max_parallel,
            "strategy": strategy,
            "seed": seed,
        }
        definition = self.definition(overrides)
        check(definition)
        opened = open_store(store_url(None if store is None else fspath(store)), create=True)
        try:
            launched = launch(opened, definition)
            if launched.is_elsewhere:
                raise LeaseHeldError(
                    f"sweep {launched.sweep.sweep_id}: a controller is at work on it already; it goes on with the new "
                    f"{', '.join(launched.changes)}"
                )
            state = run_with_progress(opened, launched, show=progress)
            sweep = state.sweep
            return SweepResult(
                sweep_id=sweep.sweep_id,
                name=sweep.config.name,
                status=sweep.status,
                reason=sweep.reason,
                best=state.runs[sweep.best_run_id] if sweep.best_run_id is not None else None,
                runs=sorted(state.runs.values(), key=lambda run: run.index),
            )
        finally:
            opened.close()

    def definition(self, overrides: Mapping[str, Any]) -> Definition:
        """The sweep as it would be started here, with the settings that are given instead of the decorator's."""
        from metta.sweep.launch import Definition

        given = {name: value for name, value in overrides.items() if value is not None}
        values = {field: getattr(self.settings, field) for field in self.settings.__struct_fields__}
        return Definition(
            settings=parse_settings({**values, **given}),
            target=self.function,
            evaluate=self.evaluate,
            default_name=_default_name(self.function),
            working_directory=Path.cwd(),
            metric_is_inferred=self.metric_is_inferred,
        )


def _default_name(function: Callable[..., Any]) -> str:
    """The file's name for a script, the function's otherwise."""
    file = Path(getattr(sys.modules.get(function.__module__), "__file__", None) or "")
    if file.is_file() and "." not in function.__module__:
        return file.stem
    return getattr(function, "__name__", "sweep").strip("<>")


def sweep(
    *,
    search_space: Mapping[str, Any],
    metric: str | None = None,
    direction: str | None = None,
    evaluate: Callable[..., Any] | None = None,
    **settings: Any,
) -> Callable[[Callable[..., Any]], Sweep]:
    """Make a function sweepable. It is called with one configuration, a dict, and returns or reports metrics.

    Args:
        search_space: Parameters by name; nested mappings become dot paths, plain values constants.
        metric: Name of the metric that counts; its last value is a run's score. Without it that is the only one that
            the function, or `evaluate`, is seen to return or report.
        direction: "maximize" (the default) or "minimize"; without a metric, what its name says.
        evaluate: A function that scores a trained run in a job of its own; called with the same configuration.
        **settings: `name`, `strategy` (default "random"), `seed`, `max_parallel` (default: as many as fit here),
            `max_parallel_eval`, `max_trials`, `budget_hours`, `max_hours`, `resources`, `job_timeout_s`, `grace_s`,
            `isolation`, `notify`; see `SweepConfig`.

    Raises:
        ConfigError: a setting is not valid.
    """
    if isinstance(settings.get("resources"), msgspec.Struct):
        settings["resources"] = msgspec.to_builtins(settings["resources"])
    space = dict(search_space) if isinstance(search_space, Mapping) else search_space
    if direction is not None:
        settings["direction"] = direction
    checked = parse_settings({"search_space": space, "metric": "?" if metric is None else metric, **settings})
    parse_space(checked.search_space)

    def decorate(function: Callable[..., Any]) -> Sweep:
        if metric is not None:
            return Sweep(function, checked, evaluate)
        from metta.sweep.config_defaults.inference import infer_from_function

        said = None if direction is None else checked.direction
        found = infer_from_function(function if evaluate is None else evaluate, said)
        inferred = replace(checked, metric=found.metric, direction=found.direction)
        return Sweep(function, inferred, evaluate, metric_is_inferred=True)

    return decorate
