"""Nodes that a job may run on, and the steps from them to its plan: drafted, priced, placed, and planned again.

The draft has all ranks on the closest links and on one device. What it costs to stand further
apart is priced by it, placement weighs those prices, and the plan is made once more for the
devices and links that came of it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from pipelinejob.base.errors import SpecError
from pipelinejob.contract.plan import CostSource, Placement, Plan
from pipelinejob.costs.layers import Profile
from pipelinejob.fabric import hardware as hardware_data
from pipelinejob.fabric import network as all_networks
from pipelinejob.fabric.hardware import DeviceKind, Hardware
from pipelinejob.fabric.network import Network
from pipelinejob.fabric.pool import Pool
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.placement.capacity import Demand
from pipelinejob.placement.fastest_devices import place_on_fastest
from pipelinejob.placement.prices import Prices, prices_of
from pipelinejob.planning.planner import counted, make_plan, on_devices, slowed
from pipelinejob.spec.job import Device, Parallelism, PipelineJobSpec
from pipelinejob.spec.network.objective import Objective

PRODUCT = "nvidia.com/gpu.product"  # the label that GPU feature discovery gives a node

Demands = Callable[[PipelineJobSpec], Sequence[Demand]]  # what each rank of a spec asks for, and where it may go


@dataclass(frozen=True, kw_only=True)
class Site:
    """Nodes with what is free on them, their tree, what a job's ranks ask of them, and what is known of hardware."""

    nodes: Sequence[NodeInfo]
    topology: Topology
    demands_of: Demands
    hardware: Hardware

    @classmethod
    def of(
        cls, nodes: Sequence[NodeInfo], topology: Topology, demands_of: Demands, *, hardware: Hardware | None = None
    ) -> "Site":
        """Return the site with the packaged data on devices and links, if no other is given."""
        return cls(nodes=nodes, topology=topology, demands_of=demands_of, hardware=hardware or hardware_data.default())

    def device_of(self, spec: PipelineJobSpec, node: NodeInfo) -> DeviceKind:
        """Return what a stage on a node computes on."""
        return self.hardware.reckoned_as(spec.device, node.labels.get(PRODUCT, ""))

    def pool(self, spec: PipelineJobSpec) -> Pool:
        """Return the free devices of the nodes that a job's pods may go to.

        Of a job whose degrees are open those count that a pipeline of one stage may go to.
        """
        is_open = spec.parallelism.is_open
        alone = spec.model_copy(update={"parallelism": Parallelism(pipeline=1)}) if is_open else spec
        return self._pool(spec, self.demands_of(alone))

    def _pool(self, spec: PipelineJobSpec, demands: Sequence[Demand]) -> Pool:
        resource = spec.gpu_resource if spec.device is Device.GPU else "cpu"
        return Pool.of(
            (self.device_of(spec, node), int(node.free.get(resource, 0)))
            for node in _open_to(demands, self.topology.usable(self.nodes))
        )

    def likely_device(self, spec: PipelineJobSpec, pool: Pool) -> DeviceKind:
        """Return the fastest device of a pool that a decided job has room on; if on none alone, what most is free of.

        Of a pool without any, what is reckoned with where nothing is known.
        """
        if spec.device is Device.CPU:
            return self.hardware.reckoned_as(spec.device)
        room: Counter[str] = Counter()
        kinds: dict[str, DeviceKind] = {}
        for group in pool.groups:  # the fastest come first
            room[group.device.name] += group.room_for(spec.parallelism.tensor)
            kinds[group.device.name] = group.device
        if not kinds:
            return self.hardware.reckoned_as(spec.device)
        wanted = spec.parallelism.pipeline * spec.parallelism.data
        holding = next((name for name in kinds if room[name] >= wanted), None)
        return kinds[holding or max(kinds, key=lambda name: room[name])]

    def draft(
        self,
        spec: PipelineJobSpec,
        *,
        namespace: str,
        name: str,
        profile: Profile | None = None,
        speeds: Sequence[float] | None = None,
    ) -> "Draft":
        """Plan a decided job as if all its ranks stood next to each other on the likeliest device.

        Where that has too little memory, on the next one that has enough, and only nodes with it
        count. `profile` are measured costs, `speeds` what stages were measured to do of what they
        should, the best being 1. Raises SpecError, as `planner.make_plan` does.
        """
        demands = self.demands_of(spec)
        pool = self._pool(spec, demands)
        likely = self.likely_device(spec, pool)

        def drafted(site: Site, device: DeviceKind) -> Draft:
            return site._draft_on(
                device, spec, demands, namespace=namespace, name=name, measured=profile, speeds=speeds
            )

        try:
            return drafted(self, likely)
        except SpecError:
            others = dict.fromkeys(group.device for group in pool.groups if group.device != likely)
            for device in others:
                with suppress(SpecError):
                    return drafted(self._only(device, spec), device)
            raise

    def _only(self, device: DeviceKind, spec: PipelineJobSpec) -> "Site":
        return replace(self, nodes=[each for each in self.nodes if self.device_of(spec, each) == device])

    def _draft_on(
        self,
        device: DeviceKind,
        spec: PipelineJobSpec,
        demands: Sequence[Demand],
        *,
        namespace: str,
        name: str,
        measured: Profile | None,
        speeds: Sequence[float] | None,
    ) -> "Draft":
        """Plan a job as if all its ranks stood next to each other on a device, whatever there is of it."""
        devices = None if spec.device is Device.CPU else (device,) * spec.parallelism.pipeline
        costs = measured or counted(spec, devices, self.hardware)
        return Draft(
            site=self,
            spec=spec,
            demands=demands,
            measured=measured,
            speeds=speeds,
            costs=slowed(on_devices(costs, spec, devices, self.hardware) if devices else costs, speeds),
            network=all_networks.of(self.topology, self.hardware, device),
            plan=make_plan(
                namespace=namespace,
                name=name,
                spec=spec,
                profile=costs,
                devices=devices,
                hardware=self.hardware,
                speeds=speeds,
            ),
        )


def _open_to(demands: Sequence[Demand], nodes: Sequence[NodeInfo]) -> Iterator[NodeInfo]:
    """Yield the usable nodes that at least one of the ranks may go to."""
    is_any = any(each.nodes is None for each in demands)
    allowed = frozenset[str]().union(*(each.nodes or () for each in demands))
    return (node for node in nodes if node.unusable is None and (is_any or node.name in allowed))


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A plan at a site, and what it was made with: for a place, or before there is one."""

    site: Site
    spec: PipelineJobSpec
    demands: Sequence[Demand]
    plan: Plan
    costs: Profile
    network: Network
    measured: Profile | None = None
    speeds: Sequence[float] | None = None

    @cached_property
    def prices(self) -> Prices | None:
        """Price ranks that stand apart; None where nothing is known of the layers but their number."""
        return None if self.costs.source is CostSource.EQUAL else prices_of(self.plan, self.costs, self.network)

    def place(self, *, objective: Objective | None = None) -> Placement:
        """Place every rank on a node, by the objective given or the manifest's own.

        Raises NoPlacementError and SpecError, as `placement.place` does.
        """
        topology = self.spec.topology
        return place_on_fastest(
            self.demands,
            self.site.topology,
            self.site.nodes,
            rate=self.rate,
            scope=topology.pipeline,
            prices=self.prices,
            threshold=topology.threshold,
            objective=objective or topology.objective,
        )

    def rate(self, node: NodeInfo) -> float:
        """Return how fast a stage computes on a node, in floating-point operations a second."""
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
            speeds=self.speeds,
        )
        on = on_devices(costs, self.spec, devices, self.site.hardware) if devices else costs
        return replace(self, plan=plan, costs=slowed(on, self.speeds))

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
