"""LCBench: what real networks reached on real data sets, answered by a surrogate in a fraction of a millisecond.

The model is the `lcbench` scenario of YAHPO Gym (Pfisterer et al. 2022) over the learning curves of Zimmer, Lindauer
and Hutter (2021). It is no part of this repository: the folder that the variable LCBENCH_DIR names holds `model.onnx`,
`config_space.json` and `encoding.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from metta.sweep.model.space import Config, LogUniform, Parameter, Range, SearchSpace, Uniform

VARIABLE = "LCBENCH_DIR"
#: The instances to develop on. The others are kept for judging what was developed.
DEVELOPMENT_INSTANCES = (
    "7593",
    "126025",
    "126029",
    "167104",
    "167149",
    "167152",
    "167161",
    "167181",
    "167184",
    "167185",
    "167190",
)
_INSTANCE = "OpenML_task_id"
#: Epochs of a full training: the fidelity, which is not searched here.
EPOCHS = 52
#: What the model takes, in its order. It scales and embeds by itself.
_INPUTS = (
    "epoch",
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "num_layers",
    "max_units",
    "max_dropout",
)
#: Of what it answers: time in seconds since the training began, val_accuracy, val_cross_entropy, ...
_TIME, _VAL_ACCURACY = 0, 1


def folder() -> Path:
    """Where the model lies; ends the script where it does not."""
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "lcbench"
    missing = [name for name in ("model.onnx", "config_space.json", "encoding.json") if not (path / name).is_file()]
    if missing:
        raise SystemExit(
            f"LCBench: {path} has no {', '.join(missing)}; set {VARIABLE} to the folder with the lcbench scenario of "
            "YAHPO Gym's data (github.com/slds-lmu/yahpo_data), or leave it out: --problems synthetic training"
        )
    return path


class Surrogate:
    """The model, for all instances.

    Args:
        path: The folder it lies in.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._model = onnxruntime.InferenceSession(path / "model.onnx", options, providers=["CPUExecutionProvider"])
        self._codes: dict[str, int] = json.loads((path / "encoding.json").read_text())[_INSTANCE]
        parameters = json.loads((path / "config_space.json").read_text())["hyperparameters"]
        self.space = SearchSpace.of(
            {each["name"]: _parameter(each) for each in parameters if each["name"] not in {_INSTANCE, "epoch"}}
        )
        self.instances = next(tuple(each["choices"]) for each in parameters if each["name"] == _INSTANCE)

    def accuracies(self, instance: str, configs: Sequence[Config]) -> np.ndarray:
        """Validation accuracy in percent after a full training with each configuration."""
        rows = [[config.get(name, EPOCHS) for name in _INPUTS] for config in configs]
        codes = np.full((len(rows), 1), self._codes[instance], np.int32)
        answers = self._model.run(None, {"x_cat": codes, "x_cont": np.array(rows, np.float32)})[0]
        return np.asarray(answers[:, _VAL_ACCURACY], float)

    def curve(self, instance: str, config: Config) -> tuple[np.ndarray, np.ndarray]:
        """After each epoch of a training the seconds it took by then, never falling, and the validation accuracy."""
        rows = [[{**config, "epoch": epoch}[name] for name in _INPUTS] for epoch in range(1, EPOCHS + 1)]
        codes = np.full((len(rows), 1), self._codes[instance], np.int32)
        answers = self._model.run(None, {"x_cat": codes, "x_cont": np.array(rows, np.float32)})[0]
        seconds = np.maximum.accumulate(np.maximum(answers[:, _TIME], 1e-3))
        return np.asarray(seconds, float), np.asarray(answers[:, _VAL_ACCURACY], float)


@cache
def surrogate() -> Surrogate:
    """The model, loaded once in each process."""
    return Surrogate(folder())


def _parameter(described: dict[str, Any]) -> Parameter:
    low, high, log = described["lower"], described["upper"], described["log"]
    if described["type"] == "uniform_int":
        return Range(low, high, log=log)
    return LogUniform(low, high) if log else Uniform(low, high)
