"""The nodes of an inventory as one job finds them: what is free for it, what it asks of them, how they are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from pipelinejob.hardware import Hardware
from pipelinejob.placement.room import Demand
from pipelinejob.plan import Placement
from pipelinejob.site import Site
from pipelinejob.spec import Device, PipelineJobSpec
from pipelinejob.topology import NodeInfo, Topology
from pipelinejob_operator.admission.choosing import Chooser, node_infos
from pipelinejob_operator.cli.manifests import GivenJob
from pipelinejob_operator.cli.plan.nodes import Inventory, Named
from pipelinejob_operator.cli.plan.objects import as_stored
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.report.fabric_view import FabricView, fabric_view


@dataclass(frozen=True, kw_only=True)
class Ground:
    """One job before given nodes."""

    job: GivenJob
    inventory: Inventory
    hardware: Hardware
    settings: ControllerSettings

    @cached_property
    def site(self) -> Site:
        """Give the nodes as placement sees them, in the tree that the manifest asks for."""
        tree = Topology.from_spec(self.job.spec.topology, self._infos, self.inventory.profiles)
        return Site.of(self._infos, tree, hardware=self.hardware)

    @property
    def idle(self) -> "Ground":
        """Give the same nodes as if all work on them were done."""
        if self.inventory.is_empty:
            return self
        return replace(self, inventory=replace(self.inventory, is_empty=True))

    def demands_of(self, spec: PipelineJobSpec) -> Sequence[Demand]:
        """Give what each rank of a spec asks for, and where its pod may go."""
        return Chooser(self.inventory.nodes, self.settings).demands(replace(as_stored(self.job), spec=spec))

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

    @cached_property
    def _free(self) -> Mapping[str, Mapping[str, Fraction]]:
        return self.inventory.free_for(Named(namespace=self.job.namespace, name=self.job.name), self.settings)

    @cached_property
    def _infos(self) -> list[NodeInfo]:
        return node_infos(self.inventory.nodes, self._free)

    @property
    def _resource(self) -> str:
        return self.job.spec.gpu_resource if self.job.spec.device is Device.GPU else "cpu"
