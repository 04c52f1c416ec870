"""Pages of one schedule, or of several: what their templates are given. Data in, HTML out."""

from collections.abc import Mapping, Sequence

from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.text import render as written
from pipelinejob_operator.report.looks import LOOKS, looks_of
from pipelinejob_operator.report.marks import Row, looks_in, shades_of
from pipelinejob_operator.report.numbers import plain
from pipelinejob_operator.report.pages.page import Chart, chart, render
from pipelinejob_operator.report.pictures.charts import Bar, bars
from pipelinejob_operator.report.pictures.gantt import Curve, Panel, curves, gantt, readable_width
from pipelinejob_operator.report.schedule_view import ScheduleView

_WIDTH = 1560  # pixels
_LONGEST_TEXT = 20_000  # characters of a schedule that a page shows


def schedule_page(view: ScheduleView) -> str:
    """Write the page of one schedule."""
    outcome, span_s = view.outcome, view.outcome.simulation.makespan_s
    panel = Panel(rows=view.rows)
    width = max(_WIDTH, readable_width([panel], span_s))
    drawn = gantt([panel], span_s=span_s, label="Timeline of one step", write=plain, width=width)
    actions = written(outcome.schedule)
    return render(
        "schedule.html",
        view=view,
        timeline=chart(drawn, width, page_width=_WIDTH, looks=looks_in(panel.rows), shades=shades_of(outcome.schedule)),
        held=None if outcome.schedule.is_forward_only else _held(view, width),
        spent=_spent(view),
        actions=actions if len(actions) <= _LONGEST_TEXT else None,
    )


def comparison_page(views: Sequence[ScheduleView], missing: Mapping[ScheduleName, str], *, sizes: str) -> str:
    """Write the page of several schedules on one time axis, and of those that are `missing`."""
    panels = [Panel(rows=view.rows, title=f"{view.outcome.name}: {view.times}; {view.memory}") for view in views]
    span_s = max(view.outcome.simulation.makespan_s for view in views)
    width = max(_WIDTH, readable_width(panels, span_s))
    drawn = gantt(panels, span_s=span_s, label="Timelines of one step, on one axis", write=plain, width=width)
    looks = looks_in([row for panel in panels for row in panel.rows])
    timelines = chart(drawn, width, page_width=_WIDTH, looks=looks, shades=_shades_of_all(views))
    return render("comparison.html", sizes=sizes, timelines=timelines, missing=missing)


def _shades_of_all(views: Sequence[ScheduleView]) -> dict[int, str]:
    """Return what shades stand for: one may be a chunk here, and a direction there."""
    said: dict[int, list[str]] = {}
    for view in views:
        for shade, name in shades_of(view.outcome.schedule).items():
            said.setdefault(shade, []).append(name)
    return {shade: " or ".join(dict.fromkeys(names)) for shade, names in sorted(said.items())}


def _held(view: ScheduleView, width: float) -> Chart:
    outcome, simulation = view.outcome, view.outcome.simulation
    caps = outcome.caps or (None,) * outcome.schedule.num_ranks
    found = [
        Curve(name=drawn.name, points=simulation.activations(rank), cap=caps[rank])
        for rank, drawn in enumerate(view.rows)
    ]
    label = "Activations that each rank holds over the step"
    return chart(curves(found, span_s=simulation.makespan_s, label=label, width=width), width, page_width=_WIDTH)


def _spent(view: ScheduleView) -> Chart:
    found = [Bar(name=each.name, seconds=_seconds(each)) for each in view.rows]
    drawn = bars(found, label="Where each rank's time goes", write=plain, width=_WIDTH)
    return chart(drawn, _WIDTH, page_width=_WIDTH, looks=looks_of({name for bar in found for name in bar.seconds}))


def _seconds(drawn: Row) -> dict[str, float]:
    spent: dict[str, float] = {}
    for mark in drawn.marks:
        name = next(name for name, look in LOOKS.items() if look is mark.look)
        spent[name] = spent.get(name, 0.0) + mark.end_s - mark.start_s
    return spent
