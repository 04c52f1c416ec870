"""What joins the ranks of a job: the hops that its pipelines' messages take, and the rings that sum its gradients."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from pipelinejob.contract.plan import LinkPlan, Placement
from pipelinejob.fabric.hardware import LinkKind
from pipelinejob.fabric.network import Network, common_depth

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Links:
    """Links by the ranks that they join, in every replica the same; of what is not named nothing is known.

    `hops` are by (from, to), and count for the way back too unless that is named. `rings` join the
    replicas of a rank.
    """

    hops: Mapping[Pair, LinkKind] = field(default_factory=dict)
    rings: Mapping[int, LinkKind] = field(default_factory=dict)

    def hop(self, source: int, target: int) -> LinkKind | None:
        """Return what joins two ranks of one replica."""
        return self.hops.get((source, target)) or self.hops.get((target, source))

    def ring(self, ranks: Iterable[int]) -> LinkKind | None:
        """Return the slowest ring of some ranks."""
        known = [self.rings[rank] for rank in ranks if rank in self.rings]
        return min(known, key=lambda link: link.bytes_per_s, default=None)

    def planned(self) -> tuple[LinkPlan, ...]:
        """Return the form that stands in a plan."""
        all_links = [*self.hops.items(), *(((rank, rank), link) for rank, link in self.rings.items())]
        return tuple(
            LinkPlan(between=pair, kind=link.name, latency_s=link.latency_s, bytes_per_s=link.bytes_per_s)
            for pair, link in all_links
        )

    @classmethod
    def of_plan(cls, planned: Iterable[LinkPlan]) -> "Links | None":
        """Read the form that stands in a plan; None where that knows of none."""
        kinds = {
            each.between: LinkKind(name=each.kind, latency_s=each.latency_s, bytes_per_s=each.bytes_per_s)
            for each in planned
        }
        hops = {(source, target): kind for (source, target), kind in kinds.items() if source != target}
        rings = {source: kind for (source, target), kind in kinds.items() if source == target}
        return cls(hops=hops, rings=rings) if kinds else None


def closest(links: Links | None, network: Network | None) -> Links | None:
    """Return the same links were they all within one node; None where none are known."""
    if links is None or network is None:
        return None
    return Links(hops=dict.fromkeys(links.hops, network.links[-1]), rings=dict.fromkeys(links.rings, network.links[-1]))


def of_placement(placement: Placement, network: Network, *, num_bytes: float) -> Links:
    """The links that a placement's messages of `num_bytes` take: between neighbours, and from last rank to first.

    A step ends when the last replica has done it, so of the replicas' hops the slowest counts.
    However the replicas of a rank are ordered in a ring, it must leave each domain that does not
    hold all of them.
    """
    paths = {(each.replica, each.stage): each.path for each in placement.assignments}
    replicas = 1 + max(replica for replica, _ in paths)
    num_ranks = 1 + max(stage for _, stage in paths)

    def hop(source: int, target: int) -> LinkKind:
        ways = (network.between(paths[replica, source], paths[replica, target]) for replica in range(replicas))
        return max(ways, key=lambda link: link.seconds(num_bytes))

    def ring(rank: int) -> LinkKind:
        first = paths[0, rank]
        return network.links[min(common_depth(first, paths[replica, rank]) for replica in range(1, replicas))]

    pairs = pairwise((*range(num_ranks), 0))
    return Links(
        hops={pair: hop(*pair) for pair in pairs if pair[0] != pair[1]},
        rings={rank: ring(rank) for rank in range(num_ranks) if replicas > 1},
    )
