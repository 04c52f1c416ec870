"""A plan for people, in a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelinejob.base.timeline import Timeline
from pipelinejob.contract.plan import StagePlan
from pipelinejob.planning.playing import schedule_of
from pipelinejob.siting.alternatives import About, Alternative
from pipelinejob_operator.cli.shown.console import chart_width, console_for_people, is_unbounded
from pipelinejob_operator.cli.shown.gantt import gantt_lines
from pipelinejob_operator.report.numbers import gib, seconds
from pipelinejob_operator.report.plan_view import PlanView, price_text, rate_text, utilization_text
from pipelinejob_operator.report.run_view import layers

_MOST_NODES = 4  # named in a cell
_MOST_REJECTED = 8
_WIDE = 100  # columns of a terminal that has room for all that is known of alternatives
_OF_PASSES = (
    "passes of a short request for each group, all at once (predicted): {tone}, a request's prompt; F, a token of each"
    " answer of a group"
)
_HEADINGS = {
    About.CONFIGURATION: "other configurations, and what a step would take (predicted)",
    About.PLACEMENT: "other places, and what a step would take (predicted)",
    About.TO_FIT: "what would fit now, and what a step would take (predicted)",
}


def print_plan(view: PlanView, *, timeline: Timeline | None = None) -> None:
    """Print it, and draw a timeline that is predicted, too."""
    console = console_for_people()
    console.print(Text.assemble((view.name, "bold"), f"  {view.shape_line}"), soft_wrap=True)
    console.print(Text(view.prediction_line), soft_wrap=True)
    if view.serves:
        console.print(_loads_table(view))
    if view.where:
        console.print(Text(f"on: {view.where}"), soft_wrap=True)
    if view.tree:
        console.print(Text(f"network: {view.tree}"), soft_wrap=True)
    if view.devices_line:
        console.print(Text(view.devices_line), soft_wrap=True)
    for note in view.notes:
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)
    console.print(_stage_table(view, console))
    for line in (view.memory_line, view.protection_line, view.placement_line, view.trade_line, view.room_line):
        if line:
            console.print(Text(line), soft_wrap=True)
    for about in About:
        found = [each for each in view.alternatives if each.about is about]
        _print_alternatives(console, about, found, serves=view.serves)
    _print_rejected(console, view)
    if timeline:
        _print_gantt(console, view, timeline)


def _loads_table(view: PlanView) -> Table:
    table = _table(right=("requests at once", "first token", "a token", "tokens/s", "stages busy"))
    for each in view.plan.prediction.serving:
        times = [seconds(each.first_token_s), seconds(each.per_token_s), rate_text(each.tokens_per_s)]
        table.add_row(
            str(each.requests), *(times if view.is_absolute else ["–"] * 3), utilization_text(each.utilization)
        )
    return table


def _stage_table(view: PlanView, console: Console) -> Table:
    is_narrow = console.width < _WIDE
    between = ", " if is_unbounded(console) else "\n"
    parameters = () if is_narrow else ("parameters",)
    shown: tuple[str, ...] = ("a chunk", "memory") if view.serves else ("forward", "backward", "bubble", "memory")
    table = _table("stage", "layers", right=(*parameters, *shown))
    if view.recomputes:
        table.add_column("recomputed")
    if view.placement:
        table.add_column("node", overflow="fold")
    for stage in view.plan.stages:
        shape, number, *rest = _stage_cells(view, stage)
        again = [stage.recompute_text] if view.recomputes else []
        nodes = [between.join(_nodes(view.places_of(stage.stage)))] if view.placement else []
        table.add_row(str(stage.stage), shape, *([] if is_narrow else [number]), *rest, *again, *nodes)
    return table


def _stage_cells(view: PlanView, stage: StagePlan) -> list[str]:
    is_absolute = view.is_absolute
    of_training = (seconds(stage.backward_s if is_absolute else None), f"{stage.bubble_ratio:.1%}")
    return [
        layers(stage.chunks),
        f"{stage.parameter_bytes // 4:,}" if is_absolute else "–",
        seconds(stage.forward_s if is_absolute else None),
        *(() if view.serves else of_training),
        gib(stage.memory_bytes) if is_absolute else "–",
    ]


def _nodes(places: tuple[tuple[str, int], ...]) -> list[str]:
    shown = [f"{path}{f' ({count} replicas)' if count > 1 else ''}" for path, count in places[:_MOST_NODES]]
    further = len(places) - len(shown)
    return [*shown, *([f"and {further} more nodes"] if further else [])]


def _print_alternatives(console: Console, about: About, found: list[Alternative], *, serves: bool) -> None:
    if not found:
        return
    heading = _HEADINGS[about].partition(",")[0] if serves else _HEADINGS[about]
    console.print(Text(heading, style="dim"), soft_wrap=True)
    is_narrow = console.width < _WIDE
    of_steps = () if serves else ("step", "price", *(() if is_narrow else ("bubble", "memory")))
    table = _table("what", right=of_steps)
    table.add_column("crossings")
    table.add_column("room left")
    for each in found:
        figures = (
            seconds(each.step_s),
            price_text(each.price),
            "–" if each.bubble_ratio is None else f"{each.bubble_ratio:.1%}",
            "–" if each.memory_bytes is None else gib(each.memory_bytes),
        )
        table.add_row(
            each.what,
            *figures[: len(of_steps)],
            _counts(each.crossings),
            _counts(each.room_left),
        )
    console.print(table)


def _counts(found: dict[str, int] | None) -> str:
    return ", ".join(f"{level} {count}" for level, count in (found or {}).items() if count) or "–"


def _print_rejected(console: Console, view: PlanView) -> None:
    if not view.rejected:
        return
    console.print(Text("rejected", style="dim"))
    for each in view.rejected[:_MOST_REJECTED]:
        console.print(Text(f"  {each.what}: {each.why}"), soft_wrap=True)
    further = len(view.rejected) - _MOST_REJECTED
    if further > 0:
        console.print(Text(f"  and {further} more; -o json lists them all", style="dim"))


def _print_gantt(console: Console, view: PlanView, timeline: Timeline) -> None:
    has_colours = console.color_system is not None
    if view.serves:
        console.print(
            Text(_OF_PASSES.format(tone="in another shade" if has_colours else "f"), style="dim"), soft_wrap=True
        )
    drawn = gantt_lines(
        timeline,
        chart_width(console),
        schedule=None if view.serves else schedule_of(view.plan),
        has_scale=view.is_absolute,
        has_colours=has_colours,
    )
    for line in drawn:
        console.print(line, markup=False, no_wrap=True, crop=False)


def _table(*left: str, right: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table
