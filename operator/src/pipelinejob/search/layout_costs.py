"""The devices of a layout, the costs of layers on them, and the links between them."""

from dataclasses import dataclass
from functools import cache

from pipelinejob.costs.layers import Profile
from pipelinejob.fabric.hardware import Hardware
from pipelinejob.planning.planner import counted, on_devices
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.search.space import Layout, Space
from pipelinejob.search.step_bounds import Joined, Table
from pipelinejob.spec.chosen import Chosen, resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutDevices:
    """Speeds of the stages' devices, relative to the fastest among them, bytes of each, and the kinds there are."""

    speeds: tuple[float, ...]
    limits: tuple[int, ...] | None
    names: tuple[str, ...]  # of the device kinds


class LayoutCosts:
    """Devices, costs and links of the layouts of one space, computed once each."""

    def __init__(self, space: Space, hardware: Hardware, measured: Profile | None) -> None:
        self._space = space
        self._hardware = hardware
        self._measured = measured
        self._tables = cache(self._table)
        self._devices = cache(self._devices_of)

    def of(self, layout: Layout) -> LayoutDevices:
        """Return the devices that a layout stands on."""
        return self._devices(layout.seats)

    def table(self, layout: Layout) -> Table:
        """Return the costs of the layers on the fastest of a layout's devices."""
        return self._tables(layout.tensor, layout.micro_batch_size, self.of(layout).names)

    def joined(self, layout: Layout) -> Joined:
        """Return the links between a layout's stages and between its replicas."""
        return Joined(hop=self._space.worst_hop(layout), ring=self._space.best_ring(layout))

    def profile(self, layout: Layout) -> Profile:
        """Return the costs that a layout is planned by, each stage on its own device."""
        devices = self._space.devices(layout)
        return on_devices(self.table(layout).profile, self._space.spec, devices, self._hardware)

    def _table(self, tensor: int, micro_batch_size: int, names: tuple[str, ...]) -> Table:
        if self._measured is not None:
            return Table(profile=self._measured)
        spec = self._space.spec
        one = Chosen(
            pipeline=1,
            data=1,
            tensor=tensor,
            schedule=ScheduleName.ONE_F_ONE_B,
            micro_batches=1,
            micro_batch_size=micro_batch_size,
        )
        kinds = [self._space.kind(name) for name in names]
        profile = counted(resolved(spec, one), kinds, self._hardware)
        tied = spec.model.tied_bytes // tensor
        if spec.training.lora is not None:
            return Table(profile=profile, tied_frozen_bytes=tied)
        return Table(profile=profile, tied_bytes=tied)

    def _devices_of(self, seats: tuple[int, ...]) -> LayoutDevices:
        precision = self._space.spec.training.precision
        devices = [self._space.group(seat).device for seat in seats]
        fastest = max(device.attained_flops(precision) for device in devices)
        memory = tuple(device.memory_bytes for device in devices)
        return LayoutDevices(
            speeds=tuple(device.attained_flops(precision) / fastest for device in devices),
            limits=tuple(each for each in memory if each is not None) if None not in memory else None,
            names=tuple(dict.fromkeys(device.name for device in devices)),
        )
