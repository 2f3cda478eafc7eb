"""Any of Optuna's samplers as an optimizer: `strategy="optuna:TPESampler"`. Needs the extra `optuna`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isabstract, signature
from typing import TYPE_CHECKING, Any

from metta.sweep.errors import ConfigError, MissingExtraError, SweepError, did_you_mean
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers.sampling import rng, untried
from metta.sweep.protocols import History, Suggestion

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from metta.sweep.optimizers.optuna_study import OptunaStudy

#: What these suggest depends on the trials alone. Others leave notes on trials and studies, and read them later.
_FORGETFUL = frozenset({"BruteForceSampler", "GPSampler", "RandomSampler", "TPESampler"})
#: These go through one sequence, which a seed of its own for each suggestion would tear apart.
_SEQUENTIAL = frozenset({"QMCSampler"})
#: Not offered, and what does their work here.
_REFUSED = {
    "GridSampler": "it walks a space of its own, which need not be the sweep's; use strategy 'grid'",
    "PartialFixedSampler": "it fixes what another sampler suggests; make the parameter a Constant of the space",
}
#: Arguments that say for how many trials a sampler draws at random before it does what it is named for.
_STARTUPS = ("n_startup_trials", "population_size")
#: A rehearsal has at least so many made-up trials (CMA-ES is past its first generation then), and at most so many.
_FEWEST_REHEARSED, _MOST_REHEARSED = 14, 100
#: A brute-force search lists all values of a parameter for each suggestion.
_MOST_LISTED = 10_000
#: Optuna takes seeds below this.
_SEEDS = 2**32


class OptunaOptimizer:
    """Asks a sampler of Optuna (Akiba et al. 2019) what to try next.

    Each suggestion comes from a sampler made anew, with a seed of its own, and a study in memory that tells the sweep's
    history: pending runs are its running trials, failed ones failed. The study is kept from one suggestion to the next
    while the history goes on as it was left; otherwise it is told again from the start. Samplers that keep notes in the
    study are then asked again for each run, as they were at its time, so that they find their notes.

    Args:
        sampler: Name of a class in `optuna.samplers`.
        options: Arguments for it; all but `seed`, which comes from the sweep.
    """

    def __init__(self, sampler: str = "TPESampler", **options: Any) -> None:
        samplers = _samplers()
        if sampler in _REFUSED:
            raise ConfigError(f"strategy: Optuna's {sampler} is not offered: {_REFUSED[sampler]}")
        if sampler not in samplers:
            raise ConfigError(f"strategy: Optuna has no sampler {sampler!r}; {did_you_mean(str(sampler), samplers)}")
        if "seed" in options:
            raise ConfigError(f"strategy: the seed of {sampler} comes from the sweep's own; set that one instead")
        self._name, self._class, self._options = sampler, samplers[sampler], options
        self._study: OptunaStudy | None = None
        with _quiet():
            self._new_sampler(0, 0)  # refuses options before a sweep begins

    def check(self, config: SweepConfig) -> None:
        """Rehearse: only a sampler that is past its first random trials says what it lacks or cannot do.

        Raises:
            ConfigError: the sampler cannot search this space with these options.
            MissingExtraError: it needs a package that is not installed.
        """
        self._check_lists(config)
        with _quiet(), _blaming(self._name, "cannot search this space with these options"):
            self._empty_study(config).rehearse(self._rehearsed)

    def _check_lists(self, config: SweepConfig) -> None:
        if self._name != "BruteForceSampler":
            return
        for name, parameter in config.search_space.parameters.items():
            if parameter.cardinality is not None and parameter.cardinality > _MOST_LISTED:
                raise ConfigError(
                    f"strategy: Optuna's {self._name} cannot search this space: it lists all values of a parameter, at "
                    f"most {_MOST_LISTED}, and {name!r} has {parameter.cardinality}; widen its step, or use another "
                    "sampler"
                )

    @property
    def _rehearsed(self) -> int:
        """Number of made-up trials that take the sampler past its start."""
        arguments = {name: each.default for name, each in signature(self._class).parameters.items()} | self._options
        startups: list[int] = [arguments[name] for name in _STARTUPS if isinstance(arguments.get(name), int)]
        return min(max(_FEWEST_REHEARSED, *(startup + 1 for startup in startups), 0), _MOST_REHEARSED)

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        with _quiet(), _blaming(self._name, "failed to suggest anything; try other options, or another sampler"):
            study, self._study = self._study, None
            if study is None or not study.follow(history):
                study = self._new_study(history)
            suggestions = self._suggestions(study, history, n)
        self._study = study
        return suggestions

    def _new_study(self, history: History) -> OptunaStudy:
        study = self._empty_study(history.config)
        study.follow(history)
        return study

    def _empty_study(self, config: SweepConfig) -> OptunaStudy:
        from metta.sweep.optimizers.optuna_study import OptunaStudy

        return OptunaStudy(config, self._new_sampler, replays=self._name not in _FORGETFUL)

    def _suggestions(self, study: OptunaStudy, history: History, n: int) -> list[Suggestion]:
        chosen: set[bytes] = set()
        suggestions: list[Suggestion] = []
        for index in range(history.count, history.count + n):
            asked, number = study.ask(index)
            config = untried(history, chosen, asked, rng(history.config.seed, index))
            if config is None:
                study.abandon(number)
                break
            reason = f"Optuna's {self._name}, suggestion {index}"
            if config is not asked:
                reason = f"random draw {index}: what Optuna's {self._name} suggested was tried before"
                study.abandon(number)
                number = study.add(config)
            study.expect(index, config, number)
            suggestions.append(Suggestion(config=config, reasons=(reason,)))
        return suggestions

    def _new_sampler(self, seed: int, index: int) -> BaseSampler:
        own = int(rng(seed, index).integers(_SEEDS))
        arguments = {**self._options, "seed": seed % _SEEDS if self._name in _SEQUENTIAL else own}
        if self._name == "QMCSampler":
            # For what its sequence does not cover, it must not start a random one anew each time.
            arguments["independent_sampler"] = _samplers()["RandomSampler"](seed=own)
        with _blaming(self._name, f"does not take these options {self._options!r}"):
            return self._class(**arguments)


def _samplers() -> dict[str, Callable[..., BaseSampler]]:
    """Those that a name and plain options make."""
    try:
        from optuna import samplers
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "optuna":
            raise MissingExtraError(
                'the optuna strategies need Optuna; install it with: pip install "metta-sweep[optuna]"'
            ) from error
        raise MissingExtraError(
            f"the optuna strategies need Optuna, which is installed but broken ({_described(error)}); "
            'install it again with: pip install --force-reinstall "metta-sweep[optuna]"'
        ) from error
    classes = {name: getattr(samplers, name) for name in samplers.__all__ if name.endswith("Sampler")}
    return {name: each for name, each in classes.items() if not isabstract(each) and name not in _REFUSED}


@contextmanager
def _blaming(sampler: str, problem: str) -> Iterator[None]:
    """Whatever a sampler raises as an error of this package, for samplers find fault in any way they like."""
    try:
        yield
    except SweepError:
        raise
    except ImportError as error:
        raise MissingExtraError(_lack(sampler, error)) from error
    except Exception as error:
        raise ConfigError(f"strategy: Optuna's {sampler} {problem}: {_described(error)}") from error


def _lack(sampler: str, error: ImportError) -> str:
    # Optuna raises some of these for want of a package that only their cause names.
    for each in (error, error.__cause__):
        if isinstance(each, ModuleNotFoundError) and each.name:
            package = each.name.partition(".")[0]
            return f"strategy: the sampler {sampler} needs {package}; install it with: pip install {package}"
    return f"strategy: the sampler {sampler} needs a package that cannot be imported: {error}"


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's remarks on standard error, and its warnings of what is experimental."""
    from optuna import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
