"""The command lines that people would type."""

from __future__ import annotations

import shlex

from metta.sweep.agent.command import arguments_for
from metta.sweep.model.run import RunInfo
from metta.sweep.model.space import nest
from metta.sweep.model.sweep import CommandTarget, PickledTarget, SweepConfig, Target


def rerun_command(config: SweepConfig, run: RunInfo) -> str:
    """One line for a shell that runs what a run ran, by hand: in the same folder, with the same configuration.

    Nothing is written to the sweep. A command that wants a folder or an id of its run gets the folder `rerun-ID`, and
    `rerun-ID` as the id. A function is imported and called, its result printed. A sweep that evaluates does so after
    the training.
    """
    steps = [_step(target, config, run) for target in (config.target, config.evaluate) if target is not None]
    return " && ".join([f"cd {shlex.quote(config.working_directory)}", *steps])


def _step(target: Target, config: SweepConfig, run: RunInfo) -> str:
    if isinstance(target, CommandTarget):
        return _command(target, config, run)
    values = repr(nest(run.config))
    if any("." in name for name in run.config):
        # As the function receives it: readable by dot path, too.
        values = f"__import__('metta.sweep.session', fromlist=['RunConfig']).RunConfig({values})"
    if isinstance(target, PickledTarget):
        code = f"import cloudpickle; print(cloudpickle.load(open({target.path!r}, 'rb'))({values}))"
    elif target.module.endswith(".py"):
        first, _, rest = target.name.partition(".")
        function = f"[{first!r}]" + (f".{rest}" if rest else "")
        code = f"import runpy; print(runpy.run_path({target.module!r}){function}({values}))"
    else:
        code = f"import {target.module} as module; print(module.{target.name}({values}))"
    if '"' not in code:
        # Shells spell single quotes awkwardly, and what has no double ones means the same with them.
        code = code.replace("'", '"')
    path = f"PYTHONPATH={shlex.quote(':'.join(target.import_path))} " if target.import_path else ""
    return f"{path}python -c {shlex.quote(code)}"


def _command(target: CommandTarget, config: SweepConfig, run: RunInfo) -> str:
    name = f"rerun-{run.run_id}"
    arguments = arguments_for(
        target.argv, run.config, {"run_id": name, "run_directory": name}, config.search_space.parameters
    )
    line = shlex.join(arguments)
    wants_folder = any("{run_directory}" in argument for argument in target.argv)
    return f"mkdir -p {name} && {line}" if wants_folder else line
