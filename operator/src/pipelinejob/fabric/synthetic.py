"""A cluster that is only described: a few lines give hundreds of nodes, with labels, devices and what is taken of them.

    levels: [superpod, leaf]                                     # coarse to fine
    node: {product: NVIDIA-H100-80GB-HBM3, gpus: 8, cpu: 192, memory: 2Ti}
    links: {cluster: roce-400, superpod: infiniband-ndr}         # link kinds of the hardware file, by level
    groups:
    - {superpod: [A, B, C], leaf: 8, nodes: 16}                  # three by name, eight in each by number, 16 nodes each
    - {superpod: D, leaf: [11, 8, 6, 3]}                         # four leaves of unlike size
    busy:
    - {in: A, nodes: 40, seed: 1}                                # 40 nodes scattered over A
    - {in: D-leaf-0, nodes: 3, gpus: 4}                          # half of each of three nodes
    - B-leaf-2                                                   # a whole domain, or one node by its name

A level that a group leaves out is one whose label its nodes lack. Everything follows from the text
alone: what is scattered is scattered by a hash of seed and name.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from pipelinejob.base.errors import InvalidManifestError, SpecError
from pipelinejob.base.quantities import quantity
from pipelinejob.fabric.description import MAX_NODES, Description, Group, Machine, NamedLevel
from pipelinejob.fabric.occupancy import occupied
from pipelinejob.fabric.presets import HOSTNAME, NODE_LEVEL, PLAIN, PROFILES
from pipelinejob.fabric.topology import NodeInfo, Topology
from pipelinejob.spec.network.topology_profile import Link, ProfileLevel, TopologyProfileSpec

CLUSTER = "cluster"
PREFIX = "fabric.pipelinejob.io"  # of label keys for levels that no preset knows
RAIL = "rail"
PRODUCT = "nvidia.com/gpu.product"
_COUNT = "nvidia.com/gpu.count"
_NVLINK = "nvlink"
_LABEL_VALUE = re.compile("[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PLAIN_KEYS = {level.name: level.keys[0] for level in PROFILES[PLAIN]}  # zone, block, rack, nvlink


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """The nodes that a description gives: as they are, and as they would be with nothing on them."""

    name: str
    nodes: tuple[NodeInfo, ...]
    idle_nodes: tuple[NodeInfo, ...]
    profile: TopologyProfileSpec | None  # None: there is no level but the node
    gpu_resources: frozenset[str]

    @property
    def profiles(self) -> Mapping[str, TopologyProfileSpec]:
        """Return the TopologyProfiles of such a cluster, as `Topology.from_spec` takes them."""
        return {} if self.profile is None else {self.name: self.profile}

    @property
    def topology(self) -> Topology:
        """Return the tree that its own levels make."""
        return Topology.of(self.nodes, profiles=self.profiles)


def read(description: Mapping[str, Any]) -> Fabric:
    """Read a description, as YAML gives it.

    Raises InvalidManifestError with what is wrong, each with its path.
    """
    try:
        return _fabric(Description.model_validate(description))
    except ValidationError as error:
        raise InvalidManifestError(_errors(error)) from error
    except SpecError as error:
        raise InvalidManifestError([error]) from error


def _fabric(description: Description) -> Fabric:
    machines = [_machine(description, group, f"groups[{index}].node") for index, group in enumerate(description.groups)]
    levels = _levels(description, has_rails=any(_is_on_some_rails(machine) for machine in machines))
    idle = tuple(_nodes(description, machines, levels))
    gpu_resources = frozenset(machine.gpu_resource for machine in machines)
    return Fabric(
        name=description.name,
        nodes=occupied(description.busy, idle, levels, gpu_resources),
        idle_nodes=idle,
        profile=TopologyProfileSpec(levels=levels, cluster_link=_link(description, CLUSTER)) if levels else None,
        gpu_resources=gpu_resources,
    )


# ---- levels


def _levels(description: Description, *, has_rails: bool) -> tuple[ProfileLevel, ...]:
    named = list(description.levels)
    known = [each.name for each in named]
    if len(set(known)) < len(known) or {CLUSTER, NODE_LEVEL} & set(known):
        raise SpecError("levels", f"each stands there once, and {CLUSTER} and {NODE_LEVEL} are in every tree anyhow")
    if has_rails and _NVLINK in known:
        raise SpecError("node.rails", "nodes that NVLink joins have a NIC on every rail; leave rails or nvlink out")
    if has_rails and RAIL not in known:
        named.append(NamedLevel(name=RAIL))
    unknown = sorted(description.links.keys() - {CLUSTER, *(each.name for each in named)})
    if unknown:
        raise SpecError(f"links.{unknown[0]}", f"there is no such level; use {', '.join([CLUSTER, *known])}")
    return tuple(
        ProfileLevel(
            name=each.name,
            keys=each.keys or _keys(description, each.name),
            optional=each.optional or each.name == _NVLINK,
            link=_link(description, each.name),
        )
        for each in named
    )


def _keys(description: Description, name: str) -> tuple[str, ...]:
    if description.profile is None:
        return (_PLAIN_KEYS.get(name, f"{PREFIX}/{name}"),)
    if description.profile not in PROFILES:
        raise SpecError("profile", f"there is no preset {description.profile!r}; use one of {', '.join(PROFILES)}")
    keys = {level.name: level.keys for level in PROFILES[description.profile]}
    if name not in keys:
        raise SpecError("levels", f"{description.profile} has no level {name!r}; use {', '.join(keys)}")
    return keys[name]


def _link(description: Description, level: str) -> Link | None:
    link = description.links.get(level)
    if link and (link.kind is None) == (link.bytes_per_second is None):
        raise SpecError(f"links.{level}", "give either the kind of a link or its bytesPerSecond")
    return link


# ---- nodes


def _machine(description: Description, group: Group, path: str) -> Machine:
    try:
        return Machine.model_validate({**description.node, **group.node})
    except ValidationError as error:
        raise _errors(error, path if group.node else "node")[0] from error


def _nodes(description: Description, machines: Sequence[Machine], levels: Sequence[ProfileLevel]) -> Iterator[NodeInfo]:
    numbers: Counter[tuple[str, str]] = Counter()  # domains, and nodes, numbered so far: over all groups
    names: set[str] = set()
    for index, (group, machine) in enumerate(zip(description.groups, machines, strict=True)):
        room = _resources(machine, f"groups[{index}].node")
        for labels, inside, count in _innermost(group, index, levels, numbers):
            for _ in range(count):
                number = _next(numbers, inside, NODE_LEVEL)
                name = f"{inside}-n{number}".lower().replace("_", "-") if inside else f"n{number}"
                if name in names or len(names) == MAX_NODES:
                    raise SpecError(
                        f"groups[{index}]", f"there is a second node {name}, or more than {MAX_NODES} nodes"
                    )
                names.add(name)
                yield NodeInfo(name=name, labels={**labels, **_own_labels(machine, name, number, levels)}, free=room)


def _innermost(
    group: Group, index: int, levels: Sequence[ProfileLevel], numbers: Counter[tuple[str, str]]
) -> Iterator[tuple[dict[str, str], str, int]]:
    """Give, for each innermost domain, the labels of its nodes, its name, and how many nodes there are."""
    said = {name: _extent(value, f"groups[{index}].{name}") for name, value in group.extents.items()}
    unknown = sorted(said.keys() - {level.name for level in levels})
    if unknown:
        known = ", ".join([*(level.name for level in levels), "nodes", "node"])
        raise SpecError(f"groups[{index}].{unknown[0]}", f"is not among levels; use {known}, or add it there")
    used = [level for level in levels if level.name in said]
    sized = [level.name for level in used if _is_sizes(said[level.name])]
    if sized and (sized != [used[-1].name] or group.nodes is not None):
        raise SpecError(
            f"groups[{index}].{sized[0]}",
            f"sizes are counts of nodes: they go with the finest level, {used[-1].name}, and without `nodes`",
        )

    def inside(depth: int, labels: dict[str, str], name: str) -> Iterator[tuple[dict[str, str], str, int]]:
        if depth == len(used):
            yield labels, name, group.nodes or 1
            return
        level = used[depth]
        for child, size in _domains(said[level.name], level.name, name, numbers):
            below = {**labels, level.keys[0]: child}
            if size:
                yield below, child, size
            else:
                yield from inside(depth + 1, below, child)

    yield from inside(0, {}, "")


_Extent = tuple[str | None, ...] | tuple[int, ...]  # domains by name, or by number; or one of each size


def _extent(value: Any, path: str) -> _Extent:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_NODES:
        return (None,) * value
    each = [value] if isinstance(value, str) else value
    if isinstance(each, list | tuple) and each:
        if all(isinstance(one, str) and _LABEL_VALUE.fullmatch(one) for one in each):
            return tuple(each)
        if all(isinstance(one, int) and not isinstance(one, bool) and 0 < one <= MAX_NODES for one in each):
            return tuple(each)
    raise SpecError(path, "must be a domain's name, a number of domains, a list of names, or a list of sizes in nodes")


def _domains(
    extent: _Extent, level: str, parent: str, numbers: Counter[tuple[str, str]]
) -> Iterator[tuple[str, int | None]]:
    """Return name, and size where that is said, of each domain of a level inside one parent."""
    prefix = f"{parent}-" if parent else ""
    for each in extent:
        if isinstance(each, str):
            yield f"{prefix}{each}", None
        else:
            yield f"{prefix}{level}-{_next(numbers, parent, level)}", each


def _is_sizes(extent: _Extent) -> bool:
    return isinstance(extent[0], int)


def _next(numbers: Counter[tuple[str, str]], parent: str, level: str) -> int:
    numbers[parent, level] += 1
    return numbers[parent, level] - 1


def _resources(machine: Machine, path: str) -> Mapping[str, Fraction]:
    amounts = {
        "cpu": machine.cpu,
        "memory": machine.memory,
        "pods": machine.pods,
        **machine.resources,
        **({machine.gpu_resource: machine.gpus} if machine.gpus else {}),
    }
    try:
        return {name: quantity(amount) for name, amount in amounts.items()}
    except ValueError as error:
        raise SpecError(path, str(error)) from error


def _own_labels(machine: Machine, name: str, number: int, levels: Sequence[ProfileLevel]) -> dict[str, str]:
    labels = {HOSTNAME: name, **machine.labels}
    if machine.product and machine.gpus:
        labels |= {PRODUCT: machine.product, _COUNT: str(machine.gpus)}
    rail = next((level.keys[0] for level in levels if level.name == RAIL), None)
    if rail:
        labels[rail] = f"{name.rpartition('-n')[0]}-rail-{_rails(machine, number)}"
    return labels


def _is_on_some_rails(machine: Machine) -> bool:
    return machine.rails is not None and 0 < machine.gpus < machine.rails


def _rails(machine: Machine, number: int) -> str:
    """Say on which rails the node's NICs are: on all if it has a GPU for each, else on the next ones in turn."""
    if machine.rails is None or not _is_on_some_rails(machine):
        return "all"
    first = number * machine.gpus % machine.rails
    return f"{first}" if machine.gpus == 1 else f"{first}-{(first + machine.gpus - 1) % machine.rails}"


def _errors(error: ValidationError, start: str = "") -> list[SpecError]:
    """Say once for each place what is wrong there."""
    found = {_path(start, each["loc"]): each["msg"] for each in reversed(error.errors())}
    return [SpecError(path, message[:1].lower() + message[1:]) for path, message in reversed(found.items())]


def _path(start: str, location: Iterable[str | int]) -> str:
    return (start + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)).lstrip(".")
