"""What a panel of a dashboard shows, and how rows of panels become Grafana's JSON.

A line's look follows from its name, so that it is the same wherever it stands: a stage has one
colour in all panels, a state or a cause has the report's, and what a plan predicts is drawn in
dashes.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models

from pipelinejob.base.timeline import SpanKind
from pipelinejob.schedules.causes import WaitCause
from pipelinejob_operator.report.looks import LOOKS

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WINDOW = "$__rate_interval"
_COLUMNS = 24  # of Grafana's grid

# By the last digit of a stage's number: ten that stay apart on light and dark pages, neighbours
# most of all.
_STAGES = (
    *("#4e79a7", "#f28e2b", "#76b7b2", "#e15759", "#59a14f"),
    *("#edc948", "#b07aa1", "#9c755f", "#ff9da7", "#8a8f98"),
)
# What stands in a legend, and the colours of the names that this gives.
_COLOURS = {
    "{{stage}}": {rf"/: stage \d*{digit}\b/": colour for digit, colour in enumerate(_STAGES)},
    # The report tells receiving and idling apart by cause.
    "{{state}}": {
        **{rf"/: {kind}$/": LOOKS[kind].light for kind in SpanKind},
        "/: recv$/": LOOKS[WaitCause.ACTIVATION].light,
        "/: idle$/": _STAGES[-1],
    },
    "{{cause}}": {**{rf"/: {cause}$/": LOOKS[cause].light for cause in WaitCause}, "/: other$/": _STAGES[-1]},
    ": median": {"/: median$/": _STAGES[0]},
    ": 99th percentile": {"/: 99th percentile$/": _STAGES[1]},
    ": step (predicted)": {r"/: step \(predicted\)$/": _STAGES[0]},
    ": place (predicted)": {r"/: place \(predicted\)$/": _STAGES[0]},
    ": least (predicted)": {r"/: least \(predicted\)$/": _STAGES[2]},
}
_PREDICTED = "(predicted)"
_DASHES = {"fill": "dash", "dash": [8, 8]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One panel: what it asks, in which unit, and the sentence that explains it. `queries` maps legend to expression."""

    title: str
    sentence: str
    unit: str
    queries: dict[str, str]
    kind: str = "lines"  # lines, stacked or number
    height: int = 8
    full: float | None = None  # where the axis ends unless more is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Lines of panels under a title; the panels of a line share its width.

    `repeated_for` names a variable: the row stands there once for each of its chosen values.
    """

    title: str
    lines: tuple[tuple[Chart, ...], ...]
    repeated_for: str | None = None


def quantile(share: float, histogram: str, selector: str = "", by: str = "le") -> str:
    """Return the query for a quantile of a histogram, one for each value of the labels in `by` beside `le`."""
    chosen = f"{{{selector}}}" if selector else ""
    return f"histogram_quantile({share}, sum by ({by}) (rate({histogram}_bucket{chosen}[{WINDOW}])))"


def middle_and_slowest(histogram: str, selector: str = "", by: str = "le", *, of: str = "") -> dict[str, str]:
    """Return the lines of a histogram's median and 99th percentile; `of` begins their legends."""
    return {
        f"{of}median": quantile(0.5, histogram, selector, by),
        f"{of}99th percentile": quantile(0.99, histogram, selector, by),
    }


def build(
    title: str, uid: str, rows: Sequence[Row], *, variables: Sequence[dashboard.QueryVariable] = ()
) -> dashboard.Dashboard:
    """Build one dashboard from its rows."""
    board = (
        dashboard.Dashboard(title).uid(uid).tags(["pipelinejob"]).refresh("15s").time("now-1h", "now").timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )  # fmt: skip
    for variable in variables:
        board = board.with_variable(variable)
    numbers = itertools.count(1)
    for row in rows:
        board = board.with_row(_row(row).id(next(numbers)))
        for line in row.lines:
            for chart in line:
                board = board.with_panel(_panel(chart).id(next(numbers)).span(_COLUMNS // len(line)))
    return board


def choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Build a variable that chooses among the values that `query` gives."""
    return (
        dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).sort(models.VariableSort.ALPHABETICAL_ASC)
    )  # fmt: skip


def _row(row: Row) -> dashboard.Row:
    made = dashboard.Row(row.title)
    return made if row.repeated_for is None else made.repeat(row.repeated_for)


def _panel(chart: Chart) -> stat.Panel | timeseries.Panel:
    panel = _number() if chart.kind == "number" else _lines(chart)
    panel = (
        panel.title(chart.title).description(chart.sentence).unit(chart.unit).datasource(SOURCE).height(chart.height)
    )
    for reference, (legend, expression) in zip("ABCDEF", chart.queries.items(), strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(reference).datasource(SOURCE)
        panel = panel.with_target(query)
    return panel


def _number() -> stat.Panel:
    newest = options.ReduceDataOptions().calcs(["lastNotNull"])
    # A number is neither good nor bad: without a colour of its own it would be red from 80 on.
    plain = dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color("text")
    return stat.Panel().graph_mode(common.BigValueGraphMode.NONE).reduce_options(newest).color_scheme(plain)


def _lines(chart: Chart) -> timeseries.Panel:
    legend = options.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    tooltip = options.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    panel = timeseries.Panel().legend(legend.placement(common.LegendPlacement.BOTTOM)).tooltip(tooltip)
    if chart.full is not None:
        panel = panel.axis_soft_max(chart.full)
    if chart.kind == "stacked":
        stacking = options.StackingConfig().mode(common.StackingMode.NORMAL)
        panel = panel.line_width(1).fill_opacity(60).stacking(stacking).min(0)
    else:
        panel = panel.line_width(2).fill_opacity(0).axis_soft_min(0)
    return _looking_by_name(panel, " ".join(chart.queries))


def _looking_by_name(panel: timeseries.Panel, legends: str) -> timeseries.Panel:
    """Draw lines with the looks that their names ask for; a later rule has the last word."""
    colours = {name: colour for said, known in _COLOURS.items() if said in legends for name, colour in known.items()}
    for name, colour in colours.items():
        fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
        panel = panel.override_by_regexp(name, [fixed])
    if _PREDICTED not in legends:
        return panel
    dashes = models.DynamicConfigValue(id_val="custom.lineStyle", value=_DASHES)
    return panel.override_by_regexp(rf"/{re.escape(_PREDICTED)}$/", [dashes])
