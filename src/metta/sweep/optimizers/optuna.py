"""Any of Optuna's samplers as an optimizer: `strategy="optuna:TPESampler"`. Needs the extra `optuna`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isabstract
from typing import TYPE_CHECKING, Any

from metta.sweep.errors import ConfigError, MissingExtraError, did_you_mean
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers.sampling import rng, untried
from metta.sweep.protocols import History, Suggestion

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from metta.sweep.optimizers.optuna_study import OptunaStudy

#: What these suggest depends on the trials alone. Others leave notes on trials and studies, and read them later.
_FORGETFUL = frozenset({"BruteForceSampler", "GPSampler", "RandomSampler", "TPESampler"})
#: These go through one sequence, which a seed of its own for each suggestion would tear apart.
_SEQUENTIAL = frozenset({"GridSampler", "QMCSampler"})
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
        if sampler not in samplers:
            raise ConfigError(f"strategy: Optuna has no sampler {sampler!r}; {did_you_mean(str(sampler), samplers)}")
        if "seed" in options:
            raise ConfigError(f"strategy: the seed of {sampler} comes from the sweep's own; set that one instead")
        self._name, self._class, self._options = sampler, samplers[sampler], options
        self._study: OptunaStudy | None = None
        with _quiet():
            self._new_sampler(0, 0)  # refuses options before a sweep begins

    def check(self, config: SweepConfig) -> None:
        """Every space can be put in Optuna's terms; what a sampler makes of it is up to the sampler."""

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        with _quiet():
            study, self._study = self._study, None
            if study is None or not study.follow(history):
                study = self._new_study(history)
            suggestions = self._suggestions(study, history, n)
        self._study = study
        return suggestions

    def _new_study(self, history: History) -> OptunaStudy:
        from metta.sweep.optimizers.optuna_study import OptunaStudy

        study = OptunaStudy(history.config, self._new_sampler, replays=self._name not in _FORGETFUL)
        study.follow(history)
        return study

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
        try:
            return self._class(**arguments)
        except ImportError as error:
            raise MissingExtraError(f"Optuna's {self._name} needs another package: {error}") from error
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"strategy: Optuna's {self._name} does not take these options {self._options!r}: {error}"
            ) from error


def _samplers() -> dict[str, Callable[..., BaseSampler]]:
    """Those that a name and plain options make."""
    try:
        from optuna import samplers
    except ImportError as error:
        raise MissingExtraError(
            'the optuna strategies need Optuna; install it with: pip install "metta-sweep[optuna]"'
        ) from error
    classes = {name: getattr(samplers, name) for name in samplers.__all__ if name.endswith("Sampler")}
    # PartialFixedSampler fixes what another sampler suggests: here, a Constant in the space does.
    return {name: each for name, each in classes.items() if not isabstract(each) and name != "PartialFixedSampler"}


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
