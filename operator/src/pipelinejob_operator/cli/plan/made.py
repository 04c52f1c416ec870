"""Makes what is told of a job's plan: the plan, its place among given nodes, and what else could be done."""

from dataclasses import dataclass

from pipelinejob.cost import Profile
from pipelinejob.errors import NoPlacementError
from pipelinejob.hardware import Hardware
from pipelinejob.plan import Plan
from pipelinejob.planner import counted, make_plan
from pipelinejob_operator.cli.manifests import GivenJob
from pipelinejob_operator.cli.plan.nodes import Inventory
from pipelinejob_operator.cli.plan.placed import Placing
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.report.plan_view import PlanView


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What came of planning a job, and the costs that it was planned with."""

    view: PlanView
    costs: Profile

    @property
    def plan(self) -> Plan:
        """Give the plan."""
        return self.view.plan


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans jobs onto given nodes, or onto none."""

    settings: ControllerSettings
    hardware: Hardware
    inventory: Inventory | None = None
    measured: Profile | None = None

    def make(self, job: GivenJob) -> Made:
        """Plan a job.

        Raises SpecError for a job that cannot be planned; one that does not fit is a view that says so.
        """
        if self.inventory is not None:
            return self._onto_nodes(job, self.inventory)
        costs = self.measured or counted(job.spec, None, self.hardware)
        plan = make_plan(namespace=job.namespace, name=job.name, spec=job.spec, profile=costs, hardware=self.hardware)
        return Made(view=PlanView(plan=plan, device_memory=costs.memory_limits(len(plan.stages))), costs=costs)

    def _onto_nodes(self, job: GivenJob, inventory: Inventory) -> Made:
        placing = Placing(
            job=job,
            spec=job.spec,
            inventory=inventory,
            hardware=self.hardware,
            settings=self.settings,
            measured=self.measured,
        )
        try:
            made, shortfall = placing.placed, None
        except NoPlacementError as error:
            made, shortfall = placing.draft, str(error)
        plan = made.plan
        view = PlanView(
            plan=plan,
            where=placing.where,
            shortfall=shortfall,
            device_memory=made.costs.memory_limits(len(plan.stages)),
            alternatives=placing.other_places() if shortfall is None else placing.ways_to_fit(),
            fabric=placing.fabric(plan.placement),
            notes=placing.site.topology.notes,
        )
        return Made(view=view, costs=made.costs)
