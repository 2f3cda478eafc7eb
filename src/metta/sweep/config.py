"""From what users write to a SweepConfig; every error names the field, what was got, and what is allowed."""

from __future__ import annotations

import math
import re
import secrets
import shlex
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from metta.sweep import registry
from metta.sweep.config_space import parse_space
from metta.sweep.errors import FieldError, did_you_mean
from metta.sweep.model.dispatching import Dispatching
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.notify import NoticeKind, Notify
from metta.sweep.model.run import Delay, FailureKind, JobType, MaxRetries, Resources, RetryPolicy
from metta.sweep.model.sweep import (
    Direction,
    Isolation,
    MetricsSource,
    Retention,
    Strategy,
    SweepConfig,
    Target,
)

#: For no limit a setting is left out: JSON has no infinity.
_LARGEST = 1e9
Positive = Annotated[float, Meta(gt=0, le=_LARGEST)]
Count = Annotated[int, Meta(ge=1, le=int(_LARGEST))]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a user may say about a sweep, whichever way; `SweepConfig` explains the fields."""

    name: Annotated[str, Meta(min_length=1)] | None = None
    search_space: dict[Any, Any]
    metric: Annotated[str, Meta(min_length=1)]
    direction: Direction = "maximize"
    strategy: str | Strategy = "random"
    seed: Annotated[int, Meta(ge=0)] | None = None
    max_parallel: Count | None = None
    max_parallel_eval: Count = 1
    max_trials: Count | None = None
    budget_hours: Positive | None = None
    max_hours: Positive | None = None
    resources: Resources = Resources()
    job_timeout_s: Positive | None = None
    grace_s: Annotated[float, Meta(ge=0, le=_LARGEST)] = 10.0
    isolation: Isolation = "process"
    #: Short for the settings of the same name in `retry`.
    max_retries: MaxRetries | None = None
    retry_delay_seconds: Delay | None = None
    retry: RetryPolicy = RetryPolicy()
    retry_eval: RetryPolicy | None = None
    fidelity: Fidelity | None = None
    same_error_limit: Annotated[int, Meta(ge=0)] = 3
    partial_results: bool = False
    checkpoints: Retention = Retention()
    backup_hours: Positive | None = None
    backups: Count = 3
    dispatcher: str | Dispatching = "local"
    #: In short, the channels or the one channel.
    notify: Notify | list[str] | str | None = None


class SweepFile(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sweep in a file."""

    #: A command with `{parameter}` placeholders, as a list of arguments or as one line.
    command: list[str] | str | None = None
    #: A Python function instead: `file.py:function` or `package.module:function`.
    function: str | None = None
    #: Where a command's metrics are found.
    metrics: MetricsSource = MetricsSource()
    #: A command or function that scores each trained run.
    evaluate: list[str] | str | None = None


#: Settings that have settings of their own, and those that are one of a few words.
_NESTED: dict[str, type[msgspec.Struct]] = {
    "resources": Resources,
    "strategy": Strategy,
    "metrics": MetricsSource,
    "retry": RetryPolicy,
    "retry_eval": RetryPolicy,
    "checkpoints": Retention,
    "fidelity": Fidelity,
    "dispatcher": Dispatching,
    "notify": Notify,
}
_WORDS: dict[str, tuple[str, ...]] = {
    "direction": get_args(Direction),
    "isolation": get_args(Isolation),
    "stdout": ("json",),
    "on": tuple(kind.value for kind in FailureKind),
    "type": tuple(kind.value for kind in JobType),
    "notify.on": tuple(kind.value for kind in NoticeKind),
}


def parse_settings(values: Mapping[str, Any], kind: type[Settings] = Settings) -> Settings:
    """Check names and types of settings; raises FieldError."""
    _check_keys(values, kind, ())
    for name in ("search_space", "metric"):
        if values.get(name) is None:
            raise FieldError((name,), "is missing; every sweep needs one")
    try:
        settings = msgspec.convert(dict(values), kind)
    except msgspec.ValidationError as error:
        raise _field_error(error, values) from None
    if settings.name is not None:
        _check_name(settings.name)
    return settings


#: Characters that break lines or steer terminals, and halves of characters, which cannot be written down.
_NOT_IN_NAMES = {"Cc", "Cs", "Zl", "Zp"}


def _check_name(name: str) -> None:
    if any(unicodedata.category(character) in _NOT_IN_NAMES for character in name):
        raise FieldError(("name",), f"is one line without control characters, got {name!r}")


def _check_keys(values: Mapping[Any, Any], kind: type[msgspec.Struct], path: tuple[str, ...]) -> None:
    fields = kind.__struct_fields__
    for name, value in values.items():
        if name not in fields:
            raise FieldError((*path, str(name)), f"unknown key; {did_you_mean(str(name), fields)}")
        words = _words((*path, str(name)))
        if words and isinstance(value, str) and value not in words:
            raise FieldError((*path, name), f"cannot be {value!r}; {did_you_mean(value, words)}")
        if name in _NESTED and isinstance(value, Mapping):
            _check_keys(value, _NESTED[name], (*path, name))


def _words(path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The words that may stand there, where they are a few; items of a list are counted by numbers in the path."""
    names = [part for part in path if not part.isdecimal()]
    return _WORDS.get(".".join(names[-2:])) or _WORDS.get(names[-1])


def _field_error(error: msgspec.ValidationError, values: Mapping[str, Any]) -> FieldError:
    """The error in our words: `expected int, got 'ten'` rather than "Expected `int`, got `str` - at `$.seed`"."""
    message = str(error).replace("`", "")
    expected = re.split(", got | - at ", message)[0]
    path = tuple(re.findall(r"\w+", message.rpartition("$")[2]))
    value: Any = values
    for part in path:
        value = value[part] if isinstance(value, Mapping) else list(value)[int(part)]
    if message.startswith("Invalid enum value"):
        words = _words(path) or ()
        return FieldError(path, f"cannot be {_shown(path, value)}; {did_you_mean(str(value), words)}")
    return FieldError(path, f"{expected[:1].lower()}{expected[1:]}, got {_shown(path, value)}")


def _shown(path: tuple[str, ...], value: Any) -> str:
    """A value for an error message; of URLs of channels, which hold passwords, their first word only."""
    return re.sub(r"://[^'\"\s]*", "://...", repr(value)) if path[0] == "notify" else repr(value)


#: Optimizers with schedulers that have a name together: Falkner et al. (2018), "BOHB", is a TPE of the highest level
#: that enough runs have come to, with the brackets of Hyperband.
#: Parker-Holder et al. (2020), "PB2", is population based training whose new values are that optimizer's.
COMBINATIONS = {
    "bohb": Strategy(optimizer="tpe", scheduler="hyperband"),
    "pb2": Strategy(optimizer="pb2", scheduler="pbt", scheduler_options={"explore": "optimizer"}),
}


def parse_strategy(strategy: str | Strategy) -> Strategy:
    """A strategy from its short form: the name of an optimizer, of a scheduler or of both together, or `NAME:WORD`.

    The word is an optimizer's first option: `optuna:TPESampler` is the optimizer optuna with the sampler TPESampler.
    The long form takes it as well, as the name of its optimizer.
    """
    if isinstance(strategy, Strategy):
        _check_options(strategy)
        name, colon, word = strategy.optimizer.partition(":")
        if not colon:
            return strategy
        options = {registry.first_option(name): _scalar(word), **strategy.optimizer_options}
        return replace(strategy, optimizer=name, optimizer_options=options)
    name, colon, word = strategy.partition(":")
    if not colon and name in COMBINATIONS:
        return COMBINATIONS[name]
    if not colon and name in registry.names("schedulers"):
        return Strategy(scheduler=name)
    if name not in registry.names("optimizers"):
        known = {*registry.names("optimizers"), *registry.names("schedulers"), *COMBINATIONS}
        raise FieldError(("strategy",), f"there is no strategy {strategy!r}; {did_you_mean(name, known)}")
    return Strategy(optimizer=name, optimizer_options={registry.first_option(name): _scalar(word)} if colon else {})


def _check_options(strategy: Strategy) -> None:
    """Raise FieldError where an option is a number that the log could not hold."""
    for field in ("optimizer_options", "scheduler_options"):
        for name, value in getattr(strategy, field).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise FieldError(("strategy", field, name), f"has to be a finite number, got {value}")


def _scalar(word: str) -> Any:
    """What a word stands for in a short form: a number or a truth value as in JSON, else itself."""
    try:
        return msgspec.json.decode(word, type=bool | int | float)
    except msgspec.MsgspecError:
        return word


def parse_command(field: str, command: list[str] | str) -> list[str]:
    """A command as a list of arguments."""
    try:
        argv = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise FieldError((field,), f"{str(error).lower()}, got {command!r}") from None
    if not argv:
        raise FieldError((field,), "needs a program to run, got nothing")
    return argv


def parse_notify(notify: Notify | list[str] | str | None) -> Notify | None:
    """Who is told what, from its short forms: one channel, or several.

    Raises:
        FieldError: a channel is a URL, which would give away what it is protected by.
    """
    if notify is None:
        return None
    given = notify if isinstance(notify, Notify) else Notify(channels=notify if isinstance(notify, str) else (*notify,))
    for channel in given.names:
        if "://" in channel:
            scheme = re.sub(r"\W.*", "", channel)  # and no more of it: what follows may be a password
            raise FieldError(
                ("notify", "channels"),
                f"takes no URLs, which hold passwords, because it is written down, got {scheme}://...; put it in an "
                "environment variable and name that, as '$SLACK_URL' (in single quotes on a command line), or in a "
                "configuration file of Apprise and give its path",
            )
        if not channel.strip("$ "):
            raise FieldError(("notify", "channels"), f"are '$VARIABLE' or paths of files, got {channel!r}")
    return replace(given, channels=given.names)


def check_metrics(source: MetricsSource) -> None:
    """Raise FieldError when no metric could be found by the source's pattern."""
    if source.regex is None:
        return
    try:
        pattern = re.compile(source.regex)
    except re.error as error:
        raise FieldError(("metrics", "regex"), f"is no regular expression: {error}, got {source.regex!r}") from None
    if not pattern.groupindex and pattern.groups != 2:
        raise FieldError(
            ("metrics", "regex"),
            "needs groups named like metrics, such as (?P<accuracy>[0-9.]+), or two plain ones, for name and number; "
            f"got {source.regex!r}",
        )


def build_config(
    settings: Settings,
    *,
    name: str,
    target: Target,
    evaluate: Target | None,
    directory: Path,
    working_directory: Path,
) -> SweepConfig:
    """The sweep's configuration, with every default resolved to the value that will be used.

    Raises:
        ConfigError: a setting is not valid.
    """
    # Not at the top: whoever decorates a function imports this module, every forked trial included.
    from metta.sweep.config_defaults.parallelism import detect
    from metta.sweep.dispatchers.build import check_dispatching

    _check_name(name)
    space = parse_space(settings.search_space)
    config = SweepConfig(
        name=name,
        target=target,
        evaluate=evaluate,
        search_space=space,
        metric=settings.metric,
        direction=settings.direction,
        strategy=parse_strategy(settings.strategy),
        seed=secrets.randbits(32) if settings.seed is None else settings.seed,
        max_parallel=settings.max_parallel or detect(settings.resources).jobs,
        max_parallel_eval=settings.max_parallel_eval,
        max_trials=settings.max_trials,
        budget_hours=settings.budget_hours,
        max_hours=settings.max_hours,
        resources=settings.resources,
        job_timeout_s=settings.job_timeout_s,
        grace_s=settings.grace_s,
        isolation=settings.isolation,
        fidelity=settings.fidelity,
        retry=_retry_policy(settings),
        retry_eval=settings.retry_eval,
        same_error_limit=settings.same_error_limit,
        partial_results=settings.partial_results,
        checkpoints=settings.checkpoints,
        backup_hours=settings.backup_hours,
        backups=settings.backups,
        notify=parse_notify(settings.notify),
        dispatcher=Dispatching.of(settings.dispatcher),
        directory=str(directory),
        working_directory=str(working_directory),
    )
    config = _as_read_again(config)
    _check_memory(config)
    _check_fidelity(config)
    registry.scheduler(config.strategy.scheduler, config.strategy.scheduler_options).check(config)
    registry.optimizer(config.strategy.optimizer, config.strategy.optimizer_options).check(config)
    check_dispatching(config.dispatcher, config)
    return config


def _as_read_again(config: SweepConfig) -> SweepConfig:
    """The configuration as the log will give it back: what no command could read must not be written."""
    for name in SweepConfig.__struct_fields__:
        try:
            msgspec.json.encode(getattr(config, name))
        except (TypeError, ValueError, RecursionError) as error:
            raise FieldError((name,), f"cannot be written as JSON: {error}") from error
    try:
        return msgspec.json.decode(msgspec.json.encode(config), type=SweepConfig)
    except msgspec.ValidationError as error:
        raise _field_error(error, msgspec.to_builtins(config)) from None


def _check_memory(config: SweepConfig) -> None:
    at_first = config.resources.memory_gb
    for name, policy in (("retry", config.retry), ("retry_eval", config.retry_eval)):
        most = policy.max_memory_gb if policy is not None else None
        if at_first is not None and most is not None and most < at_first:
            raise FieldError(
                (name, "max_memory_gb"),
                f"is at least resources.memory_gb ({at_first:g}), from which memory grows, got {most:g}",
            )


def _check_fidelity(config: SweepConfig) -> None:
    fidelity = config.fidelity
    if fidelity is None:
        return
    if fidelity.grace_period > fidelity.maximum:
        raise FieldError(
            ("fidelity", "grace_period"), f"is at most maximum ({fidelity.maximum:g}), got {fidelity.grace_period:g}"
        )
    if fidelity.resource == config.metric:
        raise FieldError(
            ("fidelity", "resource"),
            f"is the metric that tells how far a run is, such as epoch, not the one that counts ({config.metric!r})",
        )


def _retry_policy(settings: Settings) -> RetryPolicy:
    short = {name: getattr(settings, name) for name in ("max_retries", "retry_delay_seconds")}
    given = {name: value for name, value in short.items() if value is not None}
    for name, value in given.items():
        in_full = getattr(settings.retry, name)
        if in_full not in {value, getattr(RetryPolicy(), name)}:
            raise FieldError((name,), f"is {value} here and {in_full} in retry; leave one of them out")
    return replace(settings.retry, **given)
