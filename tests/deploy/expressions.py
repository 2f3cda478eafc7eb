"""What the files of `deploy/` ask Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "metta-sweep.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
#: What Grafana puts into expressions, for all sweeps and a scrape every so often.
_VARIABLES = {"$sweep": ".*", "$__rate_interval": "1m"}


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def rules() -> list[dict[str, Any]]:
    return list(yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"])


def dashboard_expressions() -> Iterator[str]:
    """Those of panels and variables, as they are sent to Prometheus."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield _filled(target["expr"])
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield _filled(re.fullmatch(r"query_result\((.*)\)", variable["query"]["query"])[1])  # type: ignore[index]


def expression_of(title: str) -> str:
    """What the first panel of that title shows."""
    return next(_filled(panel["targets"][0]["expr"]) for panel in dashboard()["panels"] if panel["title"] == title)


def _filled(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def all_expressions() -> list[str]:
    return [*dashboard_expressions(), *(rule["expr"] for rule in rules())]
