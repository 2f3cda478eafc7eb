"""A real Prometheus for tests, in a folder of its own and on a free port."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from waiting import wait_until

RULES = Path(__file__).parents[1] / "deploy" / "prometheus" / "alerts.yaml"
#: So often it looks at what it watches, and at the rules.
EVERY = "500ms"


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    """What the program says, which must be content."""
    _need("promtool")
    done = subprocess.run(["promtool", *arguments], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.fail(f"this test needs {program}: apt-get install --yes prometheus", pytrace=False)


class PrometheusServer:
    """Watches exporters by the alerts of `deploy/`, which need not last before they fire."""

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        _need("prometheus")
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        rules = yaml.safe_load(RULES.read_text())
        for rule in rules["groups"][0]["rules"]:
            rule.pop("for", None)
        (folder / "alerts.yaml").write_text(yaml.safe_dump(rules))
        settings = {
            "global": {"scrape_interval": EVERY, "scrape_timeout": EVERY, "evaluation_interval": EVERY},
            "rule_files": ["alerts.yaml"],
            "scrape_configs": [{"job_name": "metta-sweep", "static_configs": [{"targets": list(targets)}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self._address}",
                ],
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._is_ready, what="Prometheus")
        except BaseException:
            self.stop()
            raise

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail(f"prometheus: exit code {self._process.returncode}\n{(self._folder / 'log').read_text()}")
        try:
            with urlopen(f"http://{self._address}/-/ready") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def query(self, expression: str) -> dict[frozenset[tuple[str, str]], float]:
        """Values by labels, without those that Prometheus adds, as of now: two exporters of one store say the same."""
        result = self._get("query", query=expression)["result"]
        return {
            frozenset(
                (name, value) for name, value in sample["metric"].items() if name not in {"__name__", "job", "instance"}
            ): float(sample["value"][1])
            for sample in result
        }

    def firing(self) -> dict[str, dict[str, str]]:
        """Annotations of the alerts, by name."""
        alerts = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert["annotations"] for alert in alerts if alert["state"] == "firing"}

    def _get(self, what: str, **values: str) -> Any:
        try:
            with urlopen(f"http://{self._address}/api/v1/{what}?{urlencode(values)}") as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            pytest.fail(f"{values}: {error.read().decode()}")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=60)
