"""Makes what is told of a job's plan: the plan, its place among given nodes, and what else could be done."""

from dataclasses import dataclass, replace
from functools import partial

from pipelinejob.cost import Profile, analytic_profile
from pipelinejob.errors import NoPlacementError
from pipelinejob.plan import Placement, Plan
from pipelinejob.planner import make_plan
from pipelinejob.spec import Device, PipelineJobSpec
from pipelinejob.topology import Topology
from pipelinejob_operator.admission.choosing import choose_nodes, node_infos
from pipelinejob_operator.cli.manifests import GivenJob
from pipelinejob_operator.cli.plan.nodes import Inventory, Named
from pipelinejob_operator.cli.plan.objects import as_stored
from pipelinejob_operator.cli.plan.ways import ways_to_fit
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.report.fabric_view import fabric_view
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
    inventory: Inventory | None = None
    measured: Profile | None = None

    def make(self, job: GivenJob) -> Made:
        """Plan a job.

        Raises SpecError for a job that cannot be planned; one that does not fit is a view that says so.
        """
        costs = self.measured or analytic_profile(
            job.spec.model, job.spec.data, job.spec.schedule, job.spec.training, device=job.spec.device
        )
        if self.inventory is None:
            return Made(view=PlanView(plan=self._plan(job, job.spec)), costs=costs)
        return Made(view=self._placed(job, self.inventory, costs), costs=costs)

    def _plan(self, job: GivenJob, spec: PipelineJobSpec, placement: Placement | None = None) -> Plan:
        return make_plan(namespace=job.namespace, name=job.name, spec=spec, profile=self.measured, placement=placement)

    def _placed(self, job: GivenJob, inventory: Inventory, costs: Profile) -> PlanView:
        free = inventory.free_for(Named(namespace=job.namespace, name=job.name), self.settings)

        def place(spec: PipelineJobSpec) -> Placement:
            read = replace(as_stored(job), spec=spec)
            return choose_nodes(read, spec, nodes=inventory.nodes, free=free, settings=self.settings)

        shortfall, placement = None, None
        try:
            placement = place(job.spec)
        except NoPlacementError as error:
            shortfall = str(error)
        plan = self._plan(job, job.spec, placement)
        resource = _counted(job.spec)
        infos = node_infos(inventory.nodes, free)
        topology = Topology.from_spec(job.spec.topology, infos)
        fabric = fabric_view(
            topology,
            capacity=inventory.capacity,
            free=free,
            unusable={info.name: info.unusable for info in infos},
            resource=resource,
        )
        ways = (
            ()
            if shortfall is None
            else ways_to_fit(plan, job.spec, topology, place=place, make_plan=partial(self._plan, job))
        )
        return PlanView(
            plan=plan,
            where=inventory.where(resource, free),
            shortfall=shortfall,
            device_memory_bytes=costs.device_memory_bytes,
            alternatives=ways,
            fabric=fabric.holding(placement),
            notes=topology.notes,
        )


def _counted(spec: PipelineJobSpec) -> str:
    """Name the resource that rooms are told in."""
    return spec.gpu_resource if spec.device is Device.GPU else "cpu"
