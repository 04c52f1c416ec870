"""The Grafana dashboards, as code; `make generate` writes them to the chart's files/dashboards.

Every panel has a unit and a sentence; every number's metric is declared in the trainer's metrics.py or the operator's
opmetrics.py. Tests parse each expression and ask a real Prometheus for it.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models

FOLDER = Path(__file__).parent / "pipelinejob-operator" / "files" / "dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
JOB = 'namespace=~"$namespace", pipelinejob=~"$pipelinejob"'
WINDOW = "$__rate_interval"
COMPUTE = 'state=~"forward|backward_input|backward_weight"'
WAITING = 'state=~"send|recv|idle"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One panel: what it asks, in which unit, and the sentence that explains it. `queries` maps legend to expression."""

    title: str
    sentence: str
    unit: str
    queries: dict[str, str]
    kind: str = "lines"  # lines, stacked or number
    width: int = 8
    height: int = 7
    highest: float | None = None


def seconds(selector: str) -> str:
    """Give the rate of a stage's seconds in some states: the share of its time spent there."""
    return f"sum by (stage, replica) (rate(pipelinejob_stage_seconds_total{{{JOB}, {selector}}}[{WINDOW}]))"


def seconds_per_step(selector: str) -> str:
    """Give the seconds each step spends in some states, stage by stage."""
    return f"{seconds(selector)} / ({STEPS} > 0)"


STEPS = f"sum by (stage, replica) (rate(pipelinejob_steps_total{{{JOB}}}[{WINDOW}]))"
IDLE_BY_CAUSE = f"sum by (cause, stage, replica) (rate(pipelinejob_stage_idle_seconds_total{{{JOB}}}[{WINDOW}]))"
BUBBLE = f"{seconds(WAITING)} / ({seconds(WAITING)} + {seconds(COMPUTE)})"
LAST_STAGE_OF_FIRST_REPLICA = f'max by (namespace, pipelinejob) (pipelinejob_loss{{{JOB}, replica="0"}})'

JOB_ROWS: dict[str, tuple[Chart, ...]] = {
    "How far, how good": (
        Chart(
            title="Step",
            kind="number",
            width=4,
            height=4,
            unit="short",
            sentence="Optimiser steps completed, over all attempts (measured).",
            queries={"step": f"max(pipelinejob_step{{{JOB}}})"},
        ),
        Chart(
            title="Loss",
            kind="number",
            width=4,
            height=4,
            unit="short",
            sentence="Nats per token, mean over the global batch (measured).",
            queries={"loss": LAST_STAGE_OF_FIRST_REPLICA},
        ),
        Chart(
            title="Tokens per second",
            kind="number",
            width=4,
            height=4,
            unit="short",
            sentence="Tokens trained on each second, whole job (measured).",
            queries={"tokens/s": f'sum(rate(pipelinejob_tokens_total{{{JOB}, stage="0"}}[{WINDOW}]))'},
        ),
        Chart(
            title="Bubble",
            kind="number",
            width=4,
            height=4,
            unit="percentunit",
            sentence="Share of schedule time that stages wait, mean over stages (measured).",
            queries={"bubble": f"avg({BUBBLE})"},
        ),
        Chart(
            title="Restarts",
            kind="number",
            width=4,
            height=4,
            unit="short",
            sentence="Times the gang was started again from a checkpoint.",
            queries={"restarts": f"sum(pipelinejob_restarts_total{{{JOB}}}) or vector(0)"},
        ),
        Chart(
            title="Checkpoint age",
            kind="number",
            width=4,
            height=4,
            unit="s",
            sentence="Seconds since the newest verified checkpoint: what a crash now would cost.",
            queries={"age": f"time() - max(pipelinejob_checkpoint_last_success_timestamp_seconds{{{JOB}}} > 0)"},
        ),
        Chart(
            title="Loss",
            unit="short",
            width=12,
            sentence="Nats per token, mean over the global batch, and of the last evaluation (measured).",
            queries={
                "{{pipelinejob}}": LAST_STAGE_OF_FIRST_REPLICA,
                "{{pipelinejob}}, evaluation": f"max by (namespace, pipelinejob) (pipelinejob_evaluation_loss{{{JOB}}})",
            },
        ),
        Chart(
            title="Gradient norm",
            unit="short",
            width=12,
            sentence="Global norm over all stages, before clipping (measured).",
            queries={"{{pipelinejob}}": f"max by (namespace, pipelinejob) (pipelinejob_gradient_norm{{{JOB}}})"},
        ),
    ),
    "Where each stage's time goes": (
        Chart(
            title="Utilization of each stage",
            unit="percentunit",
            width=12,
            highest=1,
            sentence="Share of wall time in forward and backward (measured).",
            queries={"stage {{stage}}, replica {{replica}}": seconds(COMPUTE)},
        ),
        Chart(
            title="Bubble of each stage, measured and predicted",
            unit="percentunit",
            width=12,
            highest=1,
            sentence="Waiting / (waiting + compute). Dashes: what the plan predicts.",
            queries={
                "stage {{stage}}, replica {{replica}}": BUBBLE,
                "stage {{stage}} (predicted)": f"max by (stage) (pipelinejob_stage_predicted_bubble_ratio{{{JOB}}})",
            },
        ),
        Chart(
            title="Forward, each step",
            unit="s",
            sentence="Seconds of forward passes in a step (measured).",
            queries={"stage {{stage}}, replica {{replica}}": seconds_per_step('state="forward"')},
        ),
        Chart(
            title="Backward, each step",
            unit="s",
            sentence="Seconds of backward passes in a step (measured).",
            queries={
                "stage {{stage}}, replica {{replica}}": seconds_per_step('state=~"backward_input|backward_weight"')
            },
        ),
        Chart(
            title="Communication, each step",
            unit="s",
            sentence="Seconds blocked on sends and receives in a step (measured).",
            queries={"stage {{stage}}, replica {{replica}}": seconds_per_step('state=~"send|recv"')},
        ),
        Chart(
            title="All states, mean over stages",
            unit="percentunit",
            kind="stacked",
            width=16,
            highest=1,
            sentence="Every second of a stage is in exactly one state, so this sums to 1 (measured).",
            queries={
                "{{state}}": f"avg by (state) (rate(pipelinejob_stage_seconds_total{{{JOB}}}[{WINDOW}]))",
            },
        ),
        Chart(
            title="What waits were for, each step",
            unit="s",
            kind="stacked",
            width=12,
            sentence="Seconds a stage waits in a step, by cause, mean over stages (measured).",
            queries={
                "{{cause}}": f"avg by (cause) ({IDLE_BY_CAUSE} / on (stage, replica) group_left () ({STEPS} > 0))",
            },
        ),
        Chart(
            title="Memory peak of each stage",
            unit="bytes",
            width=12,
            sentence="Peak memory of each stage's process (measured).",
            queries={
                "stage {{stage}}, replica {{replica}}, {{kind}}": f"max by (stage, replica, kind) (pipelinejob_memory_bytes{{{JOB}}})",
            },
        ),
    ),
    "Speed": (
        Chart(
            title="Step time, measured and predicted",
            unit="s",
            sentence="Median and 99th percentile of a step. The plan's figure is a prediction.",
            queries={
                "p50": f"histogram_quantile(0.5, sum by (le) (rate(pipelinejob_step_duration_seconds_bucket{{{JOB}}}[{WINDOW}])))",
                "p99": f"histogram_quantile(0.99, sum by (le) (rate(pipelinejob_step_duration_seconds_bucket{{{JOB}}}[{WINDOW}])))",
                "predicted": f"max(pipelinejob_predicted_step_seconds{{{JOB}}})",
            },
        ),
        Chart(
            title="Tokens per second",
            unit="short",
            sentence="Tokens trained on each second, whole job (measured).",
            queries={
                "{{pipelinejob}}": f'sum by (namespace, pipelinejob) (rate(pipelinejob_tokens_total{{{JOB}, stage="0"}}[{WINDOW}]))',
            },
        ),
        Chart(
            title="Bytes between stages",
            unit="Bps",
            sentence="Activations and gradients sent by each stage (measured).",
            queries={
                "stage {{stage}} {{direction}}": f"sum by (stage, direction) (rate(pipelinejob_p2p_bytes_total{{{JOB}}}[{WINDOW}]))",
            },
        ),
    ),
    "Where it stands": (
        Chart(
            title="Stages parted, by level",
            unit="short",
            sentence="Neighbouring stages that stand in different domains of a level of the network.",
            queries={
                "{{pipelinejob}}, {{level}}": f"max by (namespace, pipelinejob, level) (pipelinejob_placement_crossings{{{JOB}}})",
            },
        ),
        Chart(
            title="What the place costs",
            unit="percentunit",
            sentence="Predicted share of a step, and the least that any place would have cost with what was free.",
            queries={
                "{{pipelinejob}} (predicted)": f"max by (namespace, pipelinejob) (pipelinejob_placement_penalty_ratio{{{JOB}}})",
                "{{pipelinejob}}, least (predicted)": f"max by (namespace, pipelinejob) (pipelinejob_placement_least_penalty_ratio{{{JOB}}})",
            },
        ),
        Chart(
            title="Room left beside it",
            unit="short",
            sentence="Stages like the job's that still fitted into one domain of a level when it was placed.",
            queries={
                "{{pipelinejob}}, {{level}}": f"max by (namespace, pipelinejob, level) (pipelinejob_placement_room_left{{{JOB}}})",
            },
        ),
    ),
}

CONDITION = 'pipelinejob_status_condition{status="True"'
OPERATOR_ROWS: dict[str, tuple[Chart, ...]] = {
    "Jobs": (
        Chart(
            title="Jobs by condition",
            unit="short",
            kind="stacked",
            width=12,
            sentence="PipelineJobs whose condition is True.",
            queries={"{{type}}": f"sum by (type) ({CONDITION}}})"},
        ),
        Chart(
            title="Restarts",
            unit="short",
            width=12,
            sentence="Gangs started again in the last hour, by namespace.",
            queries={"{{namespace}}": "sum by (namespace) (increase(pipelinejob_restarts_total[1h]))"},
        ),
        Chart(
            title="Jobs without a place, by reason",
            unit="short",
            kind="stacked",
            width=12,
            sentence="Why jobs are not placed: no room, not their turn, room that could never be, quota.",
            queries={"{{reason}}": "sum by (reason) (pipelinejob_waiting_reason)"},
        ),
        Chart(
            title="What places cost",
            unit="percentunit",
            width=12,
            sentence="Predicted share of a step that crossings cost, the mean over jobs and the worst of them.",
            queries={
                "mean (predicted)": "avg(pipelinejob_placement_penalty_ratio)",
                "worst (predicted)": "max(pipelinejob_placement_penalty_ratio)",
            },
        ),
    ),
    "Controller": (
        Chart(
            title="Reconciles",
            unit="ops",
            sentence="Passes each second, by result.",
            queries={"{{result}}": f"sum by (result) (rate(controller_runtime_reconcile_total[{WINDOW}]))"},
        ),
        Chart(
            title="Time of a reconcile",
            unit="s",
            sentence="99th percentile of one pass.",
            queries={
                "p99": f"histogram_quantile(0.99, sum by (le) (rate(controller_runtime_reconcile_time_seconds_bucket[{WINDOW}])))",
            },
        ),
        Chart(
            title="Queue",
            unit="short",
            sentence="Jobs that wait for a pass.",
            queries={"depth": "sum(workqueue_depth)"},
        ),
        Chart(
            title="API requests",
            unit="reqps",
            sentence="Requests to the API server each second, by answer.",
            queries={"{{method}} {{code}}": f"sum by (method, code) (rate(rest_client_requests_total[{WINDOW}]))"},
        ),
        Chart(
            title="Watch restarts",
            unit="short",
            sentence="Times the supervised watch was started again after a fault.",
            queries={"restarts": "sum(increase(pipelinejob_operator_watch_restarts_total[1h])) or vector(0)"},
        ),
        Chart(
            title="Leaders",
            unit="short",
            sentence="Operators that lead; one, or none during a hand-over.",
            queries={"leaders": "sum(leader_election_master_status)"},
        ),
    ),
}


def build(title: str, uid: str, rows: dict[str, tuple[Chart, ...]], *, by_job: bool) -> dashboard.Dashboard:
    """Build one dashboard from its rows."""
    board = (
        dashboard.Dashboard(title).uid(uid).tags(["pipelinejob"]).refresh("15s").time("now-1h", "now").timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )  # fmt: skip
    if by_job:
        board = board.with_variable(
            _choice("namespace", "Namespace", "label_values(pipelinejob_steps_total, namespace)")
        )
        board = board.with_variable(
            _choice(
                "pipelinejob",
                "PipelineJob",
                'label_values(pipelinejob_steps_total{namespace=~"$namespace"}, pipelinejob)',
            )
        )
    numbers = itertools.count(1)
    for row, charts in rows.items():
        board = board.with_row(dashboard.Row(row).id(next(numbers)))
        for chart in charts:
            board = board.with_panel(_panel(chart, next(numbers)))
    return board


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True).sort(models.VariableSort.ALPHABETICAL_ASC)
    )  # fmt: skip


def _panel(chart: Chart, number: int) -> stat.Panel | timeseries.Panel:
    panel = _number() if chart.kind == "number" else _lines(chart)
    panel = (
        panel.id(number).title(chart.title).description(chart.sentence).unit(chart.unit).datasource(SOURCE)
        .span(chart.width).height(chart.height)
    )  # fmt: skip
    if chart.highest is not None:
        panel = panel.max(chart.highest)
    for reference, (legend, expression) in zip("ABCDEF", chart.queries.items(), strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(reference).datasource(SOURCE)
        panel = panel.with_target(query)
    return panel


def _number() -> stat.Panel:
    newest = options.ReduceDataOptions().calcs(["lastNotNull"])
    return stat.Panel().graph_mode(common.BigValueGraphMode.NONE).reduce_options(newest)


def _lines(chart: Chart) -> timeseries.Panel:
    legend = options.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    panel = timeseries.Panel().line_width(1).legend(legend.placement(common.LegendPlacement.BOTTOM))
    if chart.kind == "stacked":
        return panel.fill_opacity(60).stacking(options.StackingConfig().mode(common.StackingMode.NORMAL)).min(0)
    return panel.fill_opacity(5)


def rendered() -> dict[str, str]:
    """Give each dashboard's file name and JSON."""
    boards = {
        "pipelinejob.json": build("PipelineJob", "pipelinejob", JOB_ROWS, by_job=True),
        "operator.json": build("PipelineJob operator", "pipelinejob-operator", OPERATOR_ROWS, by_job=False),
    }
    return {name: JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n" for name, board in boards.items()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)
        sys.stdout.write(f"{FOLDER / name}\n")
