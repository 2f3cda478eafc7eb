"""Command lines that rerun a run do run, and with its configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from metta.sweep.display.commands import rerun_command
from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import CommandTarget, FunctionTarget, PickledTarget
from metta.sweep.testing.sweeps import sweep_config

CONFIG: dict[str, Any] = {
    "trainer.lr": 0.01,
    "name": 'it\'s "odd" $HOME',
    "shape": [64, 64],
    "flag": True,
    "none": None,
}
NESTED = {**{name: value for name, value in CONFIG.items() if "." not in name}, "trainer": {"lr": 0.01}}
RUN = RunInfo(sweep_id="sw33p", run_id="7kq2m", index=0, config=CONFIG, created_at=0.0)


def output_of(folder: Path, **fields: Any) -> str:
    config = sweep_config(working_directory=str(folder), **fields)
    line = rerun_command(config, RUN)
    assert "\n" not in line
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd="/", env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=60
    ).stdout


@pytest.mark.parametrize("function", ["train", "Nets.train"])
def test_a_function_is_called_with_the_configuration(function: str, tmp_path: Path) -> None:
    code = "import json, helper\ndef train(config): return json.dumps([config, config['trainer.lr']])\n"
    (tmp_path / "train.py").write_text(f"{code}class Nets:\n    train = staticmethod(train)\n")
    (tmp_path / "helper.py").touch()
    target = FunctionTarget(module=str(tmp_path / "train.py"), name=function, import_path=[str(tmp_path)])
    assert json.loads(output_of(tmp_path, target=target)) == [NESTED, 0.01]
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/sub.py").write_text((tmp_path / "train.py").read_text())
    target = FunctionTarget(module="nets.sub", name=function, import_path=[str(tmp_path)])
    assert json.loads(output_of(tmp_path, target=target)) == [NESTED, 0.01]


def test_a_function_by_value_is_loaded_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "function.pkl"
    path.write_bytes(cloudpickle.dumps(lambda config: config["shape"]))
    target = PickledTarget(name="<lambda>", path=str(path), sha256="")
    assert output_of(tmp_path, target=target) == "[64, 64]\n"


def test_a_command_gets_its_arguments_and_a_folder_where_it_wants_one(tmp_path: Path) -> None:
    show = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    target = CommandTarget(argv=[*show, "--lr={trainer.lr}", "{name}", "{shape}", "--run={run_id}"])
    assert json.loads(output_of(tmp_path, target=target)) == [
        "--lr=0.01",
        CONFIG["name"],
        "[64, 64]",
        "--run=rerun-7kq2m",
    ]
    write = CommandTarget(argv=["touch", "{run_directory}/model"])
    read = CommandTarget(argv=["ls", "{run_directory}"])
    assert output_of(tmp_path, target=write, evaluate=read) == "model\n"
