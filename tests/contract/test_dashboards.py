"""Dashboards and alert rules: generated, parseable, explained, and about metrics that exist."""

import re
from pathlib import Path

import promql_parser
import pytest
import yaml

import dashboards_as_code as dashboards

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "pipelinejob-operator"
RULES = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions():
    return sorted({expression for _, expression in dashboards.panel_queries()} | {alert["expr"] for alert in ALERTS})


def declared_metrics() -> set[str]:
    """Every metric that either program declares, each in its one file."""
    files = (
        ROOT / "trainer/src/pipelinejob_trainer/metrics.py",
        ROOT / "operator/src/pipelinejob_operator/process/opmetrics.py",
    )
    pattern = r'"((?:pipelinejob|controller_runtime|workqueue|rest_client|leader_election)_[a-z0-9_]+)"'
    return {name for file in files for name in re.findall(pattern, file.read_text())}


def test_the_charts_dashboards_are_the_ones_generated():
    for name, text in dashboards.rendered().items():
        assert (CHART / "files" / "dashboards" / name).read_text() == text, f"{name} is stale: run `make generate`"


@pytest.mark.parametrize("panel", [pytest.param(panel, id=name) for name, panel in dashboards.panels()])
def test_every_panel_has_a_unit_a_sentence_and_a_data_source(panel):
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_parses_and_names_metrics_that_exist(expression):
    assert promql_parser.parse(dashboards.filled_in(expression))

    named = set(
        re.findall(
            r"\b((?:pipelinejob|controller_runtime|workqueue|rest_client|leader_election)_[a-z0-9_]+)\b(?=[\s{\[)])",
            expression,
        )
    )
    base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    unknown = {
        name
        for name in base
        if name not in declared_metrics() and name.removesuffix("_total") not in declared_metrics()
    }
    assert named
    assert not unknown


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_a_runbook_a_severity_and_a_promtool_case(alert):
    runbooks = (ROOT / "docs" / "runbooks.md").read_text()
    cases = yaml.safe_load((ROOT / "tests" / "e2e" / "alerts.yaml").read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"] if check["alertname"] == alert["alert"]]

    assert alert["labels"]["severity"] in {"info", "warning", "critical"}
    assert f"## {alert['alert']}\n" in runbooks
    assert any(check["exp_alerts"] for check in checks), "no case sees it fire"
    assert any(not check["exp_alerts"] for check in checks), "no case sees it stay silent"
