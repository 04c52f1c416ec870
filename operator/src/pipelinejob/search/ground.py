"""What the stages of a layout stand on: costs of the layers there, speeds, memory, and what joins them."""

from dataclasses import dataclass
from functools import cache

from pipelinejob.chosen import Chosen, resolved
from pipelinejob.cost import Profile
from pipelinejob.hardware import Hardware
from pipelinejob.planner import counted, on_devices
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.search.bounds import Joined, Table
from pipelinejob.search.space import Layout, Space


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Speeds of the stages' devices, relative to the fastest among them, bytes of each, and the kinds there are."""

    speeds: tuple[float, ...]
    limits: tuple[int, ...] | None
    names: tuple[str, ...]  # of the device kinds


class Grounds:
    """Looks up and remembers what layouts of one space have in common."""

    def __init__(self, space: Space, hardware: Hardware, measured: Profile | None) -> None:
        self._space = space
        self._hardware = hardware
        self._measured = measured
        self._tables = cache(self._table)
        self._grounds = cache(self._ground)

    def of(self, layout: Layout) -> Ground:
        """Give the devices that a layout stands on."""
        return self._grounds(layout.seats)

    def table(self, layout: Layout) -> Table:
        """Give the costs of the layers on the fastest of a layout's devices."""
        return self._tables(layout.tensor, layout.micro_batch_size, self.of(layout).names)

    def joined(self, layout: Layout) -> Joined:
        """Give what joins a layout's stages and replicas."""
        return Joined(hop=self._space.worst_hop(layout), ring=self._space.best_ring(layout))

    def profile(self, layout: Layout) -> Profile:
        """Give the costs that a layout is planned by, each stage on its own device."""
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
        return Table(profile=profile, tied_bytes=spec.model.tied_bytes // tensor)

    def _ground(self, seats: tuple[int, ...]) -> Ground:
        precision = self._space.spec.training.precision
        devices = [self._space.group(seat).device for seat in seats]
        fastest = max(device.attained_flops(precision) for device in devices)
        memory = tuple(device.memory_bytes for device in devices)
        return Ground(
            speeds=tuple(device.attained_flops(precision) / fastest for device in devices),
            limits=tuple(each for each in memory if each is not None) if None not in memory else None,
            names=tuple(dict.fromkeys(device.name for device in devices)),
        )
