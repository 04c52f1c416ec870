"""The page of plans: what the template `plan.html` is given. Data in, HTML out."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelinejob.costs.layers import Profile
from pipelinejob.planning.planner import predicted_timeline
from pipelinejob.planning.playing import schedule_of
from pipelinejob.siting.alternatives import About, Alternative
from pipelinejob_operator.report.marks import looks_in, row, shades_of
from pipelinejob_operator.report.numbers import seconds
from pipelinejob_operator.report.pages.page import Chart, chart, render
from pipelinejob_operator.report.pictures.fabric import crossings_by_class, fabric_picture
from pipelinejob_operator.report.pictures.gantt import Panel, gantt
from pipelinejob_operator.report.plan_view import PlanView, cache_bytes, memory_parts, rate_text, utilization_text

_MOST_MICRO_BATCHES = 4096  # of all stages together; a longer step cannot be drawn so that it is seen
_TITLES = {
    About.TO_FIT: "What would fit now",
    About.PLACEMENT: "Other places",
    About.CONFIGURATION: "Other configurations",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """A plan, and what of it is drawn; None is left out."""

    view: PlanView
    fabric: Chart | None
    crossings: Sequence[tuple[str, str, int]]  # the class of a line, the level crossed, how many
    timeline: Chart | None

    @property
    def alternatives(self) -> list[tuple[str, list[Alternative]]]:
        """Return the alternatives of each kind, under its title."""
        return [
            (title, [each for each in self.view.alternatives if each.about is kind]) for kind, title in _TITLES.items()
        ]


def plan_page(views: Sequence[tuple[PlanView, Profile]]) -> str:
    """Write the page of one or several plans, each with the costs that it was planned with."""
    return render(
        "plan.html",
        plans=[_drawn(view, costs) for view, costs in views],
        memory_parts=memory_parts,
        cache_bytes=cache_bytes,
        rate_text=rate_text,
        utilization_text=utilization_text,
    )


def _drawn(view: PlanView, costs: Profile) -> _Drawn:
    return _Drawn(
        view=view,
        fabric=chart(fabric_picture(view.fabric)) if view.fabric else None,
        crossings=crossings_by_class(view.fabric) if view.fabric else (),
        timeline=_timeline(view, costs),
    )


def _timeline(view: PlanView, costs: Profile) -> Chart | None:
    plan = view.plan
    if view.serves:  # makes no steps
        return None
    if plan.schedule.micro_batches * len(plan.stages) > _MOST_MICRO_BATCHES:
        return None
    schedule = schedule_of(plan)
    stages = [stage for stage in predicted_timeline(plan, costs).stages if stage.replica == 0]
    rows = tuple(row(stage, f"stage {stage.stage}", write=seconds, schedule=schedule) for stage in stages)
    drawn = gantt(
        [Panel(rows=rows)],
        span_s=max(each.end_s for each in rows),
        label="Predicted timeline of one step",
        write=seconds if view.is_absolute else (lambda _: ""),
    )
    return chart(drawn, looks=looks_in(rows), shades=shades_of(schedule))
