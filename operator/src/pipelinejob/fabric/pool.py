"""The devices that a search may use: groups of like nodes, and what joins them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pipelinejob.fabric.hardware import DeviceKind, LinkKind


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGroup:
    """Nodes that are alike. `link` joins two of them; unset, it is their devices' usual port to other nodes."""

    device: DeviceKind
    gpus_per_node: int
    num_nodes: int
    link: LinkKind | None = None

    @property
    def num_gpus(self) -> int:
        """Count the devices of the group."""
        return self.gpus_per_node * self.num_nodes

    def room_for(self, tensor: int) -> int:
        """Count the stages of so many devices that find room, each within one node."""
        return self.gpus_per_node // tensor * self.num_nodes


@dataclass(frozen=True, kw_only=True)
class Pool:
    """All of them. `link` joins nodes of two groups; unset, the slower one of the two groups' own."""

    groups: tuple[PoolGroup, ...]
    link: LinkKind | None = None

    @classmethod
    def of(cls, nodes: Iterable[tuple[DeviceKind, int]], *, link: LinkKind | None = None) -> "Pool":
        """Gather nodes, each a device and how many of it, into groups; those with the fastest devices first."""
        kinds: dict[str, DeviceKind] = {}
        counted: Counter[tuple[str, int]] = Counter()
        for device, count in nodes:
            if count > 0:
                counted[kinds.setdefault(device.name, device).name, count] += 1
        groups = (
            PoolGroup(device=kinds[name], gpus_per_node=count, num_nodes=number)
            for (name, count), number in counted.items()
        )
        return cls(groups=tuple(sorted(groups, key=_precedence)), link=link)

    @classmethod
    def alike(cls, device: DeviceKind, num_gpus: int, *, gpus_per_node: int = 8) -> "Pool":
        """Return as many whole nodes of one kind as hold so many devices."""
        each = min(gpus_per_node, num_gpus)
        return cls(groups=(PoolGroup(device=device, gpus_per_node=each, num_nodes=-(-num_gpus // each)),))

    @cached_property
    def num_gpus(self) -> int:
        """Count the devices of all groups."""
        return sum(group.num_gpus for group in self.groups)


def _precedence(group: PoolGroup) -> tuple[float, str, int]:
    return -max(group.device.flops.values()) * group.device.attained, group.device.name, -group.gpus_per_node
