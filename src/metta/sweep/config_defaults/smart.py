"""`SmartDefaults`: a reasonable answer to what a user has not said, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from metta.sweep.errors import ConfigError
from metta.sweep.model.run import Resources
from metta.sweep.model.space import Parameter

if TYPE_CHECKING:
    from metta.sweep.config_defaults.metrics import Candidate
    from metta.sweep.config_defaults.parallelism import Parallelism
    from metta.sweep.model.sweep import Direction

#: The name of a metric of which nothing is known.
UNKNOWN_METRIC = "objective"


class SmartDefaults:
    """Intelligent default configuration.

    Args:
        resources: What a job needs. Without it nothing is known of the jobs, and where there are GPUs each is thought
            to use one.
        root: Where the machine's `proc` and `sys` are.
    """

    def __init__(self, resources: Resources | None = None, *, root: Path = Path("/")) -> None:
        self._resources = resources
        self._root = root

    def detect_optimal_parallelism(self) -> int:
        """How many jobs to run at one time on this machine; at least 1."""
        return self.explain_parallelism().jobs

    def explain_parallelism(self) -> Parallelism:
        """The same with what was found, and which limit decided."""
        from metta.sweep.config_defaults.parallelism import detect

        return detect(self._resources, self._root)

    def infer_metric(self, code: str) -> str:
        """The metric that Python code reports, returns, prints or logs, and that a sweep of it is most likely about.

        The code is parsed and never executed. Of several, one about validation data goes before one about test data,
        training data come last, and accuracy, reward and the like go before losses. It is "objective" where none is
        found, or the code cannot be parsed.

        Raises:
            ConfigError: the code is no text.
        """
        found = self.explain_metric(code)
        return found[0].name if found else UNKNOWN_METRIC

    def infer_direction(self, metric: str) -> Direction | None:
        """Whether a metric of this name is to be maximized or minimized; None where the name does not say."""
        from metta.sweep.config_defaults.metrics import direction_of

        return direction_of(metric)

    def explain_metric(self, code: str) -> list[Candidate]:
        """All names that may be the metric's, the likeliest first, with where and why.

        Raises:
            ConfigError: the code is no text.
        """
        from metta.sweep.config_defaults.metrics import candidates

        if not isinstance(code, str):
            raise ConfigError(f"code: needs the text of Python code, got {type(code).__name__}")
        try:
            return candidates(code)
        except (SyntaxError, ValueError, RecursionError):
            return []

    def suggest_search_space(self, model_type: str) -> dict[str, Parameter]:
        """A search space to begin with, for a kind of model such as "cnn" or "xgboost"; `@sweep` takes it as it is.

        Raises:
            ConfigError: nothing is known of such models; names those that are.
        """
        from metta.sweep.config_defaults.presets import find_preset

        return dict(find_preset(model_type).space)

    def explain_search_space(self, model_type: str) -> tuple[str, ...]:
        """The papers and documents that the bounds of a suggested space come from.

        Raises:
            ConfigError: as `suggest_search_space`.
        """
        from metta.sweep.config_defaults.presets import find_preset

        return find_preset(model_type).sources
