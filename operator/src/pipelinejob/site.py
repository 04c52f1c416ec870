"""Where a job may stand, and the way from there to its plan: first drafted, then priced, placed, and planned again.

The draft has all ranks on the closest links and on one device. What it costs to stand further apart is priced
by it, placement weighs those prices, and the plan is made once more for the devices and links that came of it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from pipelinejob import hardware as hardware_data
from pipelinejob import network as all_networks
from pipelinejob.cost import Profile
from pipelinejob.errors import SpecError
from pipelinejob.hardware import DeviceKind, Hardware
from pipelinejob.network import Network
from pipelinejob.objective import Objective
from pipelinejob.placement.devices import place_on_fastest
from pipelinejob.placement.room import Demand
from pipelinejob.plan import CostSource, Placement, Plan
from pipelinejob.planner import counted, make_plan, on_devices
from pipelinejob.pool import Pool
from pipelinejob.prices import Prices, prices_of
from pipelinejob.spec import Device, PipelineJobSpec
from pipelinejob.topology import NodeInfo, Topology

PRODUCT = "nvidia.com/gpu.product"  # the label that GPU feature discovery gives a node


@dataclass(frozen=True, kw_only=True)
class Site:
    """Nodes with what is free on them, their tree, and what is known of devices and links."""

    nodes: Sequence[NodeInfo]
    topology: Topology
    hardware: Hardware

    @classmethod
    def of(cls, nodes: Sequence[NodeInfo], topology: Topology, *, hardware: Hardware | None = None) -> "Site":
        """Look at nodes and their tree; without data of one's own, with what is packaged."""
        return cls(nodes=nodes, topology=topology, hardware=hardware or hardware_data.default())

    def device_of(self, spec: PipelineJobSpec, node: NodeInfo) -> DeviceKind:
        """Give what a stage on a node computes on."""
        return self.hardware.reckoned_as(spec.device, node.labels.get(PRODUCT, ""))

    def pool(self, spec: PipelineJobSpec) -> Pool:
        """Give the devices that are free for a job, node by node; those of nodes that take no pod are not."""
        resource = spec.gpu_resource if spec.device is Device.GPU else "cpu"
        free = ((node, node.free.get(resource, 0)) for node in self.topology.usable(self.nodes))
        return Pool.of((self.device_of(spec, node), int(count)) for node, count in free if node.unusable is None)

    def likely_device(self, spec: PipelineJobSpec) -> DeviceKind:
        """Give the fastest device that a decided job has room on; where it has on none alone, what most is free of.

        Of a site without any free, what is reckoned with where nothing is known.
        """
        if spec.device is Device.CPU:
            return self.hardware.reckoned_as(spec.device)
        room: Counter[str] = Counter()
        kinds: dict[str, DeviceKind] = {}
        for group in self.pool(spec).groups:  # the fastest come first
            room[group.device.name] += group.room_for(spec.parallelism.tensor)
            kinds[group.device.name] = group.device
        if not kinds:
            return self.hardware.reckoned_as(spec.device)
        wanted = spec.parallelism.pipeline * spec.parallelism.data
        holding = next((name for name in kinds if room[name] >= wanted), None)
        return kinds[holding or max(kinds, key=lambda name: room[name])]

    def draft(self, spec: PipelineJobSpec, *, namespace: str, name: str, profile: Profile | None = None) -> "Draft":
        """Plan a job as if all its ranks stood beside each other on the likeliest device.

        Where that has too little memory, on the next one that has enough, and only nodes with it count. `profile` are
        measured costs. Raises SpecError, as `planner.make_plan` does.
        """
        likely = self.likely_device(spec)
        try:
            return self.draft_on(likely, spec, namespace=namespace, name=name, profile=profile)
        except SpecError:
            for device in (group.device for group in self.pool(spec).groups if group.device != likely):
                alone = replace(self, nodes=[each for each in self.nodes if self.device_of(spec, each) == device])
                with suppress(SpecError):
                    return alone.draft_on(device, spec, namespace=namespace, name=name, profile=profile)
            raise

    def draft_on(
        self, device: DeviceKind, spec: PipelineJobSpec, *, namespace: str, name: str, profile: Profile | None = None
    ) -> "Draft":
        """Plan a job as if all its ranks stood beside each other on a device, whatever there is of it."""
        devices = None if spec.device is Device.CPU else (device,) * spec.parallelism.pipeline
        costs = profile or counted(spec, devices, self.hardware)
        return Draft(
            site=self,
            spec=spec,
            measured=profile,
            costs=on_devices(costs, spec, devices, self.hardware) if devices else costs,
            network=all_networks.of(self.topology, self.hardware, device),
            plan=make_plan(
                namespace=namespace, name=name, spec=spec, profile=costs, devices=devices, hardware=self.hardware
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A plan at a site, and what it was made with: for a place, or before there is one."""

    site: Site
    spec: PipelineJobSpec
    plan: Plan
    costs: Profile
    network: Network
    measured: Profile | None = None

    @cached_property
    def prices(self) -> Prices | None:
        """Give what it costs that ranks stand apart; None where nothing is known of the layers but their number."""
        return None if self.costs.source is CostSource.EQUAL else prices_of(self.plan, self.costs, self.network)

    def place(self, demands: Sequence[Demand], *, objective: Objective | None = None) -> Placement:
        """Give every rank a node, by the objective given or the manifest's own.

        Raises NoPlacementError and SpecError, as `placement.place` does.
        """
        topology = self.spec.topology
        return place_on_fastest(
            demands,
            self.site.topology,
            self.site.nodes,
            rate=self.rate,
            scope=topology.pipeline,
            prices=self.prices,
            threshold=topology.threshold,
            objective=objective or topology.objective,
        )

    def rate(self, node: NodeInfo) -> float:
        """Say how fast a stage computes on a node."""
        return self.site.device_of(self.spec, node).attained_flops(self.spec.training.precision)

    def placed(self, placement: Placement) -> "Draft":
        """Plan again for a place: for the devices of its nodes, of a stage's replicas the slowest, and its links."""
        devices = self._devices(placement)
        costs = self.measured or counted(self.spec, devices, self.site.hardware)
        plan = make_plan(
            namespace=self.plan.namespace,
            name=self.plan.name,
            spec=self.spec,
            profile=costs,
            placement=placement,
            network=None if self.costs.source is CostSource.EQUAL else self.network,
            devices=devices,
            hardware=self.site.hardware,
        )
        on = on_devices(costs, self.spec, devices, self.site.hardware) if devices else costs
        return replace(self, plan=plan, costs=on)

    def _devices(self, placement: Placement) -> tuple[DeviceKind, ...] | None:
        if self.spec.device is Device.CPU:
            return None
        on, precision = self._device_by_node, self.spec.training.precision
        found: list[list[DeviceKind]] = [[] for _ in range(self.spec.parallelism.pipeline)]
        for each in placement.assignments:
            found[each.stage].append(on[each.node])
        return tuple(min(kinds, key=lambda kind: kind.attained_flops(precision)) for kinds in found)

    @cached_property
    def _device_by_node(self) -> Mapping[str, DeviceKind]:
        return {node.name: self.site.device_of(self.spec, node) for node in self.site.nodes}
