"""The files of `deploy/`: what Prometheus' tools say of them, and that they ask for nothing that is not exported."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.expressions import ALERTS, DEPLOY, all_expressions, dashboard, rules
from metta.sweep.cli.serve_metrics import DEFAULT_PORT
from observe.prometheus.sights import exposed, sight
from prometheus_server import promtool

TESTS = DEPLOY.parent / "tests" / "deploy" / "alerts.test.yaml"
#: What Prometheus adds to each series, or Grafana to no matter which.
_ADDED = {"job", "instance"}


def test_prometheus_takes_the_rules_and_the_example_of_its_settings() -> None:
    assert "SUCCESS: 9 rules found" in promtool("check", "rules", ALERTS)
    assert "is valid" in promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yaml")


def test_the_example_looks_where_metrics_are_served() -> None:
    assert f"localhost:{DEFAULT_PORT}" in (DEPLOY / "prometheus" / "prometheus.yaml").read_text()


def test_the_rules_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", TESTS)
    tested = set(re.findall(r"alertname: (\w+)", TESTS.read_text()))
    assert tested == {rule["alert"] for rule in rules()}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_says_what_is_wrong_and_names_a_command(rule: dict[str, dict[str, str]]) -> None:
    assert set(rule["annotations"]) == {"summary", "description"}
    assert '"metta sweep ' in rule["annotations"]["description"]
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}


def _exported() -> tuple[set[str], set[str]]:
    """Names of all series, and of all labels."""
    samples = [sample for family in text_string_to_metric_families(exposed(sight())) for sample in family.samples]
    return {sample.name for sample in samples}, {label for sample in samples for label in sample.labels}


@pytest.mark.parametrize("expression", all_expressions())
def test_what_is_asked_for_is_exported(expression: str) -> None:
    names, labels = _exported()
    asked = set(re.findall(r"\bmetta_\w+", expression))
    assert asked
    assert asked <= names
    groupings = re.findall(r"\b(?:by|on|without|group_left) \(([^)]*)\)", expression)
    matchers = re.findall(r'(\w+)\s*=~?\s*"', expression)
    assert {label.strip() for each in groupings for label in each.split(",")} | set(matchers) <= labels | _ADDED


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """Its panels use the data source that is chosen, and no two are in the same place."""
    board = dashboard()
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "sweep"]
    assert board["uid"]
    places: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in board["panels"] if panel["type"] != "row"]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        at = panel["gridPos"]
        mine = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not mine & places
        assert all(0 <= x < 24 for x, _ in mine)
        places |= mine
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
