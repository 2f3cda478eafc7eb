"""A sweep's configuration as the file from which it could be run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from metta.sweep.config import Settings
from metta.sweep.config_file import dump
from metta.sweep.config_space import KINDS
from metta.sweep.errors import ConfigError
from metta.sweep.model.dispatching import LOCAL
from metta.sweep.model.parameters import Choice, Constant, LogNormal, Normal, Parameter
from metta.sweep.model.sweep import CommandTarget, FunctionTarget, MetricsSource, PickledTarget, SweepConfig, Target

_KIND_OF = {parameter: kind for kind, parameter in KINDS.items()}
#: Written by hand below, or not at all.
_OWN_WAY = {"name", "search_space", "metric", "direction", "seed", "max_parallel", "dispatcher"}


def to_yaml(sweep_id: str, config: SweepConfig) -> str:
    """The configuration as a YAML file for `metta sweep run` and `import`; what is as by default is left out.

    The seed and `max_parallel` are always given, so that the file makes the same choices on another machine.

    Raises:
        ConfigError: its function is known by value only, so that no file can name it.
    """
    values: dict[str, Any] = {"name": config.name, **_targets(config)}
    values["search_space"] = {
        name: parameter_form(parameter) for name, parameter in config.search_space.parameters.items()
    }
    values |= {"metric": config.metric, "direction": config.direction}
    values |= {"seed": config.seed, "max_parallel": config.max_parallel}
    for field in msgspec.structs.fields(Settings):
        if field.name in SweepConfig.__struct_fields__ and field.name not in _OWN_WAY:
            value = getattr(config, field.name)
            if value is not None and value != field.default:
                values[field.name] = msgspec.to_builtins(value)
    if config.dispatcher != LOCAL:
        values["dispatcher"] = msgspec.to_builtins(config.dispatcher)
    # A plain file would be run under the sweep's own name, which is taken in its store.
    head = (
        f"# Sweep {sweep_id}. Jobs run in the folder of this file; this sweep's ran in {config.working_directory}\n"
        "# It has its name already in its own store: change it here, or give --name NAME.\n"
    )
    return head + dump(values)


def parameter_form(parameter: Parameter) -> dict[str, Any]:
    """A parameter as files have it, such as `{log_uniform: [1e-4, 1e-1]}`."""
    kind = _KIND_OF[type(parameter)]
    form: dict[str, Any]
    if isinstance(parameter, Choice):
        form = {kind: list(parameter.values)}
    elif isinstance(parameter, Constant):
        form = {kind: parameter.value}
    elif isinstance(parameter, Normal | LogNormal):
        form = {kind: [parameter.mean, parameter.std]}
    else:
        form = {kind: [parameter.low, parameter.high]}
    for option in ("step", "log"):
        if value := getattr(parameter, option, None):
            form[option] = value
    return {**form, "when": parameter.when} if parameter.when else form


def _targets(config: SweepConfig) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if isinstance(config.target, CommandTarget):
        values["command"] = config.target.argv
    else:
        values["function"] = _address(config.target, config)
    if isinstance(config.evaluate, CommandTarget):
        values["evaluate"] = config.evaluate.argv
    elif config.evaluate is not None:
        values["evaluate"] = _address(config.evaluate, config)
    for target in (config.target, config.evaluate):
        if isinstance(target, CommandTarget) and target.metrics != MetricsSource():
            values["metrics"] = msgspec.to_builtins(target.metrics)
            break
    return values


def _address(target: Target, config: SweepConfig) -> str:
    """`file.py:function`, the file as seen from the working folder where it is in it."""
    if isinstance(target, PickledTarget):
        raise ConfigError(
            f"function: {target.name} was carried by value, from a notebook say, so no file can name it; "
            "export with --format json, which holds the sweep with its history"
        )
    assert isinstance(target, FunctionTarget)
    module = target.module
    if os.path.isabs(module) and Path(module).is_relative_to(config.working_directory):
        module = str(Path(module).relative_to(config.working_directory))
    return f"{module}:{target.name}"
