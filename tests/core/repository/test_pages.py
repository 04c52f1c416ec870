"""All pages: whatever a name looks like, it is shown as text, and every class has a style."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipelinejob.contract.plan import Assignment, Placement
from pipelinejob.fabric import hardware
from pipelinejob.planning.planner import counted, make_plan
from pipelinejob.scheduler.catalogue import family
from pipelinejob.scheduler.comparison import outcome
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.search.reasons import Rejected
from pipelinejob.siting.alternatives import About, Alternative
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.report.fabric_view import FabricView, NodeView
from pipelinejob_operator.report.pages.plan import plan_page
from pipelinejob_operator.report.pages.run import run_page
from pipelinejob_operator.report.pages.schedule import comparison_page, schedule_page
from pipelinejob_operator.report.plan_view import PlanView
from pipelinejob_operator.report.schedule_view import ScheduleView
from pipelinejob_operator.report.summary import summarise
from support.plans import run_samples

EXAMPLE = Path(__file__).parents[3] / "examples" / "stdlib-gpt.yaml"
BOLD = "<b>x"


def plan_of(name: str) -> str:
    """Return the page of a plan in which everything that can be named is called `name`."""
    spec = PipelineJobSpec.model_validate(yaml.safe_load(EXAMPLE.read_text())["spec"])
    costs = counted(spec, None, hardware.default())
    plan = make_plan(namespace="default", name=name, spec=spec, profile=costs)
    nodes = tuple(f"{name}{stage}" for stage in range(4))
    placement = Placement(
        assignments=tuple(
            Assignment(replica=0, stage=stage, node=node, path=(name, node)) for stage, node in enumerate(nodes)
        ),
        crossings={name: 3},
    )
    fabric = FabricView(
        levels=(name, "node"),
        nodes=tuple(
            NodeView(name=node, path=(name, node), capacity=8, free=8, unusable=name) for node in (*nodes, f"{name}4")
        ),
        resource=name,
    )
    view = PlanView(
        plan=plan.model_copy(update={"placement": placement}),
        where=name,
        tree=name,
        shortfall=name,
        alternatives=tuple(
            Alternative(about=about, what=name, step_s=1.0, price=0.1, crossings={name: 1}, fields={name: name})
            for about in About
        ),
        rejected=(Rejected(what=name, why=name),),
        fabric=fabric.holding(placement),
        notes=(name,),
    )
    return plan_page([(view, costs)])


def schedule_view(name: ScheduleName, said: str) -> ScheduleView:
    played = outcome(name, Setting(num_ranks=4, num_micro_batches=8), overlap=True)
    return ScheduleView(outcome=played, title=said, source=family(name).source)


def schedule_of(name: str) -> str:
    return schedule_page(replace(schedule_view(ScheduleName.ZB_V, name), source=name))


def comparison_of(name: str) -> str:
    views = [schedule_view(each, name) for each in (ScheduleName.ZB_V, ScheduleName.DUALPIPE)]
    return comparison_page(views, {ScheduleName.HANAYO: name}, sizes=name)


def run_of(name: str) -> str:
    summary = summarise(
        run_samples.plan(),
        status=run_samples.status(),
        steps=run_samples.steps(),
        predicted=run_samples.predicted(),
        measured=run_samples.measured(),
    ).model_copy(update={"name": name, "namespace": name, "message": name, "state": name})
    return run_page(
        summary,
        steps=run_samples.steps(),
        predicted=run_samples.predicted(),
        measured=run_samples.measured(),
        schedule=run_samples.schedule(),
        sample=name,
    )


PAGES = {"plan": plan_of, "schedule": schedule_of, "comparison": comparison_of, "run": run_of}


@pytest.mark.parametrize(("page", "times"), [("plan", 20), ("schedule", 2), ("comparison", 2), ("run", 6)])
def test_a_name_that_looks_like_markup_is_shown_as_text(page: str, times: int) -> None:
    written = PAGES[page](BOLD)

    assert BOLD not in written
    assert written.count("&lt;b&gt;x") >= times


@pytest.mark.parametrize("page", PAGES)
def test_every_class_on_a_page_has_a_rule_in_its_style_sheet(page: str) -> None:
    written = PAGES[page]("name")

    style = "".join(re.findall(r"<style>(.*?)</style>", written, re.DOTALL))
    used = {word for found in re.findall(r'class="([^"]*)"', written) for word in found.split()}
    assert {word for word in used if f".{word}" not in style} == set()
