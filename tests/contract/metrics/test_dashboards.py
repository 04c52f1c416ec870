"""Dashboards and alert rules: generated, parseable, explained, and about metrics that exist."""

import json
import re
from itertools import groupby
from pathlib import Path

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import OF_INTERVALS, rendered
from support.real_nodes import dashboards_as_code as dashboards

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "pipelinejob-operator"
RULES = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions():
    return sorted({expression for _, expression in dashboards.panel_queries()} | {alert["expr"] for alert in ALERTS})


def of_jobs():
    """Each query about jobs, with the name of its panel."""
    return [
        pytest.param(name, target, id=f"{name}, {target['legendFormat']}")
        for name, panel in dashboards.panels()
        for target in panel["targets"]
        if name.startswith(("pipelinejob.json", "serving.json"))
    ]


def look(panel, name):
    """Return the colour and the dashes that Grafana's rules give to a line of this name; the last that fits counts."""
    found = {"color": {"fixedColor": ""}, "custom.lineStyle": {"fill": "solid"}}
    for rule in panel["fieldConfig"]["overrides"]:
        if re.search(rule["matcher"]["options"].strip("/"), name):
            found |= {each["id"]: each["value"] for each in rule["properties"]}
    return found["color"]["fixedColor"], found["custom.lineStyle"]["fill"]


def declared_metrics() -> set[str]:
    """Every metric that either program declares; the operator's of jobs stand apart."""
    files = (
        ROOT / "trainer/src/pipelinejob_trainer/process/metrics.py",
        ROOT / "trainer/src/pipelinejob_trainer/serving/front/metrics.py",
        ROOT / "operator/src/pipelinejob_operator/process/opmetrics.py",
        ROOT / "operator/src/pipelinejob_operator/process/jobmetrics.py",
    )
    pattern = r'"((?:pipelinejob|controller_runtime|workqueue|rest_client|leader_election)_[a-z0-9_]+)"'
    return {name for file in files for name in re.findall(pattern, file.read_text())}


def test_the_charts_dashboards_are_the_ones_generated():
    for name, text in rendered().items():
        assert (CHART / "files" / "dashboards" / name).read_text() == text, f"{name} is stale: run `make generate`"


@pytest.mark.parametrize("panel", [pytest.param(panel, id=name) for name, panel in dashboards.panels()])
def test_every_panel_has_a_unit_a_sentence_and_a_data_source(panel):
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]


@pytest.mark.parametrize("name", dashboards.boards())
def test_grafanas_schema_knows_every_field_and_misses_none(name):
    plugins.register_default_plugins()
    board = dashboards.boards()[name]

    read = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))

    # What the schema does not know is lost in reading, and what it requires is added. Of variables
    # the SDK knows three fields more than Grafana does, those of intervals: end-to-end tests ask
    # Grafana's own types.
    for variable in read["templating"]["list"]:
        assert [variable.pop(field) for field in OF_INTERVALS] == [False, 30, "10s"]
    assert read == board


@pytest.mark.parametrize("name", dashboards.boards())
def test_each_line_of_panels_fills_the_24_columns(name):
    places = [panel["gridPos"] for panel in dashboards.boards()[name]["panels"]]
    lines = [[*line] for _, line in groupby(places, key=lambda place: place["y"])]

    # Each begins where the one before it ends: no gap, no overlap, nothing beyond the edge.
    assert [[place["x"] for place in line] for line in lines] == [
        [sum(place["w"] for place in line[:index]) for index in range(len(line))] for line in lines
    ]
    assert {sum(place["w"] for place in line) for line in lines} == {24}
    tops = [line[0]["y"] for line in lines]
    assert tops[1:] == [line[0]["y"] + max(place["h"] for place in line) for line in lines[:-1]]


@pytest.mark.parametrize(("panel", "target"), of_jobs())
def test_no_line_of_the_jobs_dashboard_adds_up_several_jobs(panel, target):
    groupings = re.findall(r"\b(?:by|on) \(([^)]*)\)", target["expr"])

    assert groupings
    assert all({"namespace", "pipelinejob"} <= {*re.split(r", ?", labels)} for labels in groupings)
    assert "{{pipelinejob}}" in target["legendFormat"]
    selectors = re.findall(r"\bpipelinejob_\w+(\{[^}]*\})?", target["expr"])
    assert all('namespace=~"$namespace", pipelinejob=~"$pipelinejob"' in each for each in selectors)


@pytest.mark.parametrize(
    "expression", [text for name, text in dashboards.panel_queries() if name.startswith("operator.json")]
)
def test_the_operators_dashboard_counts_no_other_controller(expression):
    own = (
        r'controller_runtime_\w+\{controller="pipelinejob"',
        r'workqueue_\w+\{name="pipelinejob"',
        r'leader_election_\w+\{name="pipelinejob-operator"',
        # Its requests name no controller: they are those of whoever tells of the operator's lease.
        r"rest_client_\w+(?=.* and on \(job, instance\) leader_election_master_status)",
        r"pipelinejob_\w+",
    )
    metrics = re.findall(r"\b(?:controller_runtime|workqueue|leader_election|rest_client|pipelinejob)_\w+", expression)

    assert len(re.findall("|".join(own), expression)) == len(metrics) > 0


def test_what_a_plan_predicts_is_dashed_in_the_colour_of_what_was_measured():
    panel = dict(dashboards.panels())["pipelinejob.json: Bubble of each stage, measured and predicted"]

    looks = [
        look(panel, f"gpt: stage {stage}{rest}")
        for stage in (0, 1, 13)
        for rest in (", replica 0", ", replica 1", " (predicted)")
    ]

    assert looks == [
        *[("#4e79a7", "solid"), ("#4e79a7", "solid"), ("#4e79a7", "dash")],
        *[("#f28e2b", "solid"), ("#f28e2b", "solid"), ("#f28e2b", "dash")],
        *[("#e15759", "solid"), ("#e15759", "solid"), ("#e15759", "dash")],
    ]


@pytest.mark.parametrize("panel", [pytest.param(panel, id=name) for name, panel in dashboards.panels()])
def test_dashes_are_for_predictions_alone(panel):
    legends = [target["legendFormat"] for target in panel["targets"]]

    dashed = [legend for legend in legends if look(panel, legend)[1] == "dash"]

    assert dashed == [legend for legend in legends if "predicted" in legend]


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
    assert "runbook_url" not in alert["annotations"], "the chart writes it: a path means nothing in an alert"
    assert any(check["exp_alerts"] for check in checks), "no case sees it fire"
    assert any(not check["exp_alerts"] for check in checks), "no case sees it stay silent"
