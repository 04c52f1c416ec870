"""A job planned onto nodes: its place, what it would cost elsewhere, and what would fit if it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from pipelinejob.cost import Profile
from pipelinejob.errors import NoPlacementError
from pipelinejob.hardware import Hardware
from pipelinejob.objective import Objective
from pipelinejob.placement_room import Demand
from pipelinejob.plan import Placement, Plan
from pipelinejob.site import Draft, Site
from pipelinejob.spec import Device, PipelineJobSpec
from pipelinejob.topology import NodeInfo, Topology
from pipelinejob_operator.admission.choosing import Chooser, node_infos
from pipelinejob_operator.cli.manifests import GivenJob
from pipelinejob_operator.cli.plan.nodes import Inventory, Named
from pipelinejob_operator.cli.plan.objects import as_stored
from pipelinejob_operator.cli.plan.ways import alternative, ways_to_fit
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.report.fabric_view import FabricView, fabric_view
from pipelinejob_operator.report.plan_view import About, Alternative

_OBJECTIVES = {
    Objective.CHAIN: "chain: the least step, whatever room it leaves",
    Objective.PACK: "pack: the tightest domains, then the least step in them",
}


@dataclass(frozen=True, kw_only=True)
class Placing:
    """One job before given nodes. `spec` is its own, or one in which what was open is chosen."""

    job: GivenJob
    spec: PipelineJobSpec
    inventory: Inventory
    hardware: Hardware
    settings: ControllerSettings
    measured: Profile | None = None

    @cached_property
    def site(self) -> Site:
        """Give the nodes as placement sees them."""
        topology = Topology.from_spec(self.spec.topology, self._infos, self.inventory.profiles)
        return Site.of(self._infos, topology, hardware=self.hardware)

    @cached_property
    def draft(self) -> Draft:
        """Plan before there is a place.

        Raises SpecError for a job that cannot be planned.
        """
        return self._draft_of(self.spec)

    @cached_property
    def placed(self) -> Draft:
        """Plan for the place that the job gets.

        Raises NoPlacementError if there is none now.
        """
        return self.draft.placed(self.draft.place(self._demands(self.spec)))

    @property
    def where(self) -> str:
        """Say in one line what there is."""
        return self.inventory.where(self._resource, self._free)

    def fabric(self, placement: Placement | None) -> FabricView:
        """Give what is drawn of the nodes."""
        view = fabric_view(
            self.site.topology,
            capacity=self.inventory.capacity,
            free=self._free,
            unusable={info.name: info.unusable for info in self._infos},
            resource=self._resource,
        )
        return view.holding(placement)

    def ways_to_fit(self) -> tuple[Alternative, ...]:
        """Try what the job could ask for instead, where it does not fit."""

        def place(spec: PipelineJobSpec) -> Placement:
            return self._draft_of(spec).place(self._demands(spec))

        def plan(spec: PipelineJobSpec, placement: Placement) -> Plan:
            return self._draft_of(spec).placed(placement).plan

        return ways_to_fit(self.draft.plan, self.spec, self.site.topology, place=place, make_plan=plan)

    def other_places(self) -> tuple[Alternative, ...]:
        """Give the places that other objectives would choose, where they are others than the job's own."""
        own, found = self.placed.plan, list[Alternative]()
        seen = {_nodes(own.placement)}
        for objective, what in _OBJECTIVES.items():
            try:
                placement = self.draft.place(self._demands(self.spec), objective=objective)
            except NoPlacementError:  # it fits, but its search is bounded
                continue
            if _nodes(placement) in seen:
                continue
            seen.add(_nodes(placement))
            fields: dict[str, object] = {"spec.topology.objective": objective.value}
            other = self.draft.placed(placement).plan
            found.append(alternative(own, other, about=About.PLACEMENT, what=what, fields=fields))
        return tuple(found)

    def _draft_of(self, spec: PipelineJobSpec) -> Draft:
        site = self.site if spec.topology == self.spec.topology else replace(self, spec=spec).site
        return site.draft(spec, namespace=self.job.namespace, name=self.job.name, profile=self.measured)

    def _demands(self, spec: PipelineJobSpec) -> Sequence[Demand]:
        return Chooser(self.inventory.nodes, self.settings).demands(replace(as_stored(self.job), spec=spec))

    @cached_property
    def _free(self) -> Mapping[str, Mapping[str, Fraction]]:
        return self.inventory.free_for(Named(namespace=self.job.namespace, name=self.job.name), self.settings)

    @cached_property
    def _infos(self) -> list[NodeInfo]:
        return node_infos(self.inventory.nodes, self._free)

    @property
    def _resource(self) -> str:
        return self.spec.gpu_resource if self.spec.device is Device.GPU else "cpu"


def _nodes(placement: Placement | None) -> tuple[str, ...]:
    return tuple(each.node for each in placement.assignments) if placement else ()
