"""What the network looks like, read from node labels: a tree of domains, from coarse (zones) to fine (NVLink domains).

Which labels those are says a preset (`topology_presets.py`), a TopologyProfile, or the manifest
itself. Reading takes time in proportion to the nodes, 100,000 of them about a second.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType

from pipelinejob.base.errors import SpecError
from pipelinejob.fabric.presets import HOSTNAME, NODE_LEVEL, PLAIN, PROFILES, Level, levels_of
from pipelinejob.spec import job as spec
from pipelinejob.spec.network.topology_profile import Link, MissingLabels, TopologyProfileSpec

__all__ = ["HOSTNAME", "NODE_LEVEL", "NO_PROFILES", "PROFILES", "Domain", "Level", "NodeInfo", "Topology", "detect"]

Profiles = Mapping[str, TopologyProfileSpec]  # the TopologyProfiles of a cluster, by name

AUTO = "auto"
_SHOWN = 3  # names in a note
_NODE = Level(name=NODE_LEVEL, keys=(HOSTNAME,))
NO_PROFILES: Profiles = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """A node as placement sees it."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    free: Mapping[str, Fraction] = field(default_factory=dict)  # what is left of each resource
    unusable: str | None = None  # why no new pod may go there: `is cordoned`, `is not ready`


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A part of the network: its path from coarse to fine, the domains inside, or the nodes where there are none."""

    path: tuple[str, ...]
    children: tuple["Domain", ...] = ()
    node: str | None = None

    @property
    def name(self) -> str:
        """Return what the domain's own label says."""
        return self.path[-1] if self.path else "the cluster"

    def at_depth(self, depth: int) -> Iterable["Domain"]:
        """Return the domains so many levels below this one."""
        if depth == 0:
            yield self
        else:
            for child in self.children:
                yield from child.at_depth(depth - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The tree of domains over some nodes."""

    profile: str
    levels: tuple[Level, ...]  # those that at least one node carries, coarse to fine, and the node itself
    absent: tuple[Level, ...]  # those of the profile that no node carries
    paths: Mapping[str, tuple[str, ...]]  # node -> its domains, one a level, the node last
    root: Domain
    notes: tuple[str, ...]  # what was odd about the labels
    excluded: Mapping[str, str] = field(default_factory=dict)  # node -> why it stands in no domain
    link: Link | None = None  # what joins two domains of the coarsest level, where a TopologyProfile says so

    @classmethod
    def of(
        cls,
        nodes: Sequence[NodeInfo],
        profile: str = AUTO,
        levels: Sequence[str] | None = None,
        *,
        missing: MissingLabels | None = None,
        profiles: Profiles = NO_PROFILES,
    ) -> "Topology":
        """Read the tree from labels: by `levels` (label keys, coarse to fine) if given, else by a profile.

        A profile is one of the cluster's `profiles` (TopologyProfiles) or a preset, in this order.
        `missing` says what becomes of nodes without a level's label; if unset the TopologyProfile
        does, else each counts as a domain of its own, and a note says so. Raises SpecError for a
        profile that does not exist.
        """
        if levels is not None:
            shape = _Shape("levels", tuple(Level(name=key, keys=(key,)) for key in levels if key != HOSTNAME))
        else:
            shape = _shape(detect(nodes, profiles) if profile == AUTO else profile, profiles)
        return _topology(shape, nodes, missing or shape.missing)

    @classmethod
    def from_spec(
        cls, topology: spec.Topology, nodes: Sequence[NodeInfo], profiles: Profiles = NO_PROFILES
    ) -> "Topology":
        """Read the tree that a manifest asks for."""
        return cls.of(nodes, topology.profile, topology.levels, missing=topology.missing_labels, profiles=profiles)

    def usable(self, nodes: Sequence[NodeInfo]) -> Sequence[NodeInfo]:
        """Return the nodes, those that stand in no domain marked as unusable."""
        if not self.excluded:
            return nodes
        return [
            replace(node, unusable=node.unusable or self.excluded[node.name]) if node.name in self.excluded else node
            for node in nodes
        ]

    def depth_of(self, level: str, *, path: str) -> int | None:
        """Count the levels down to the one that a user calls so; None if the profile knows it but no node carries it.

        Raises SpecError at `path` for a level that does not exist.
        """
        for depth, each in enumerate(self.levels, start=1):
            if each.is_called(level):
                return depth
        if any(each.is_called(level) for each in self.absent):
            return None
        known = ", ".join(each.name for each in self.levels)
        raise SpecError(path, f"there is no level {level!r} in profile {self.profile}; use one of {known}")


def detect(nodes: Sequence[NodeInfo], profiles: Profiles = NO_PROFILES) -> str:
    """Name the profile whose own labels most nodes carry: one of `profiles`, else a preset, else the plain one."""
    for known in filter(None, ({name: levels_of(each) for name, each in profiles.items()}, PROFILES)):
        counts = _carriers(known, nodes)
        best = max(known, key=counts.__getitem__)  # of equals the first
        if counts[best]:
            return best
    return PLAIN


def _carriers(known: Mapping[str, Sequence[Level]], nodes: Sequence[NodeInfo]) -> Counter[str]:
    """Count for each profile the nodes that carry a label which the plain one has not."""
    common = {key for level in PROFILES[PLAIN] for key in level.keys} if known is PROFILES else set()
    own = {name: {key for level in levels for key in level.keys} - common for name, levels in known.items()}
    wanted = frozenset().union(*own.values())
    # Most nodes carry the same few keys: those sets are counted, then who knows them.
    carried = Counter(frozenset(key for key in wanted.intersection(node.labels) if node.labels[key]) for node in nodes)
    counts: Counter[str] = Counter()
    for keys, count in carried.items():
        counts.update({name: count for name, owned in own.items() if owned & keys})
    return counts


@dataclass(frozen=True, slots=True)
class _Shape:
    """What there is to read of nodes."""

    profile: str
    levels: tuple[Level, ...]
    missing: MissingLabels = MissingLabels.SEPARATE
    link: Link | None = None


def _shape(name: str, profiles: Profiles) -> _Shape:
    if name in profiles:
        profile = profiles[name]
        return _Shape(name, levels_of(profile), profile.missing_labels, profile.cluster_link)
    if name in PROFILES:
        return _Shape(name, PROFILES[name])
    known = ", ".join([*sorted(profiles), *PROFILES])
    raise SpecError("spec.topology.profile", f"there is no profile {name!r}; use {AUTO}, or one of {known}")


def _topology(shape: _Shape, nodes: Sequence[NodeInfo], missing: MissingLabels) -> Topology:
    values = {level: [level.value(node.labels) for node in nodes] for level in shape.levels}
    carried = tuple(level for level in shape.levels if any(values[level]))
    excluded = _excluded(carried, values, nodes) if missing is MissingLabels.EXCLUDE else {}
    columns = [_column(level, values[level], nodes, missing) for level in carried]
    paths = sorted(zip(*columns, (node.name for node in nodes), strict=True))
    known = [path for path in paths if path[-1] not in excluded] if excluded else paths
    return Topology(
        profile=shape.profile,
        levels=(*carried, _NODE),
        absent=tuple(level for level in shape.levels if level not in carried),
        paths={path[-1]: path for path in known},
        root=_domain((), known),
        notes=tuple(note for level in carried for note in _notes(level, values[level], nodes, missing)),
        excluded=excluded,
        link=shape.link,
    )


_Values = Sequence[str | None]


def _column(level: Level, values: _Values, nodes: Sequence[NodeInfo], missing: MissingLabels) -> Sequence[str]:
    """Return every node's domain at the level."""
    if missing is MissingLabels.TOGETHER and not level.optional:
        return [value or f"no {level.name}" for value in values]
    return [value or f"only {node.name}" for value, node in zip(values, nodes, strict=True)]


def _excluded(levels: Sequence[Level], values: Mapping[Level, _Values], nodes: Sequence[NodeInfo]) -> Mapping[str, str]:
    return {
        node.name: f"has no label {level.keys[0]}"
        for level in reversed(levels)  # the coarsest counts
        if not level.optional
        for value, node in zip(values[level], nodes, strict=True)
        if value is None
    }


def _domain(path: tuple[str, ...], node_paths: Sequence[tuple[str, ...]]) -> Domain:
    """Make the domain of `path` over its nodes' paths, which are sorted."""
    depth = len(path)
    if node_paths and len(node_paths[0]) == depth:
        return Domain(path=path, node=path[-1])
    children = ((name, list(part)) for name, part in groupby(node_paths, key=itemgetter(depth)))
    return Domain(path=path, children=tuple(_domain((*path, name), part) for name, part in children))


_MEANS = {
    MissingLabels.SEPARATE: "so each counts as a {level} of its own",
    MissingLabels.TOGETHER: "so they count as one {level}",
    MissingLabels.EXCLUDE: "so they take no stage",
}


def _notes(level: Level, values: _Values, nodes: Sequence[NodeInfo], missing: MissingLabels) -> Iterator[str]:
    without = sorted(node.name for value, node in zip(values, nodes, strict=True) if value is None)
    if without and not level.optional:
        shown = ", ".join(without[:_SHOWN]) + (f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else "")
        yield f"{shown}: no label {level.keys[0]}, {_MEANS[missing].format(level=level.name)}"
