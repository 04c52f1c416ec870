"""Places a chain of like stages, exactly.

Of a domain only one thing matters to the domains above: what it costs to put x stages into it. For a single node that
is nothing, up to what it can take. For the others it is the cheapest way to share x out over the children,

    cost[d][x] = min over x = sum of x[c] of sum over c with x[c] > 0 of (use[c] + cost[c][x[c]])

a knapsack a domain, solved child by child. `use[c]` counts one domain at c's level, and what room it has. Costs are
compared level by level: domains used, from coarse to fine, then room of the domains used, from coarse to fine. That
order survives addition, so the sums of the formula can be compared by it; the vector is packed into one integer, a
digit a component.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pipelinejob.placement_room import Demand, Room
from pipelinejob.topology import Domain

_Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    """Costs of putting 0, 1, ... stages into a domain, and how each child's share was chosen.

    `shares[c][x]` is how many of x stages stand in child c if the children up to c hold x together.
    """

    room: int
    costs: list[int]
    shares: list[list[int]]


class LikeStages:
    """Chains of stages that all ask for the same, as the room for them shrinks."""

    def __init__(self, root: Domain, demand: Demand, room: Room, *, num_stages: int, num_levels: int) -> None:
        self._root = root
        self._demand = demand
        self._free = room
        self._most = num_stages
        self._num_levels = num_levels
        self._tables: dict[_Path, _Table] = {}
        self._units = self._packed_units()

    def room(self, domain: Domain) -> int:
        """Give how many stages the domain has room for."""
        return self._table(domain).room

    def place(self, domains: Iterable[Domain]) -> list[_Path] | None:
        """Give the paths of the nodes for the stages of one chain, in order; None if no domain has room for all."""
        fitting = [domain for domain in domains if self.room(domain) >= self._most]
        if not fitting:
            return None
        best = min(fitting, key=lambda domain: (self._cost(domain), domain.path))
        counts = dict(self._shared_out(best, self._most))
        for path, count in counts.items():
            for _ in range(count):
                self._free.take(self._demand, path[-1])
            self._forget(path)
        return [path for path, count in counts.items() for _ in range(count)]

    def _packed_units(self) -> list[tuple[int, int]]:
        """Give, for each depth, the packed cost of one domain used there, and of one stage's room in it."""
        num_levels, base = self._num_levels, self._most + 1
        room_base = self._table_room(self._root) + 1
        room_units = [room_base ** (num_levels - depth) for depth in range(1, num_levels + 1)]
        use_units = [room_base**num_levels * base ** (num_levels - depth) for depth in range(1, num_levels + 1)]
        return [(0, 0), *zip(use_units, room_units, strict=True)]

    def _table_room(self, domain: Domain) -> int:
        if domain.node is not None:
            return self._free.count(self._demand, domain.node, most=self._most)
        return sum(self._table_room(child) for child in domain.children)

    def _use(self, domain: Domain) -> int:
        unit, room_unit = self._units[len(domain.path)]
        return unit + self._table(domain).room * room_unit

    def _cost(self, domain: Domain) -> int:
        """Give the cost of the whole chain in the domain; the room of the domains around it counts too."""
        above = (self._within(domain.path[:depth]) for depth in range(1, len(domain.path) + 1))
        return self._table(domain).costs[self._most] + sum(self._use(each) for each in above)

    def _within(self, path: _Path) -> Domain:
        domain = self._root
        for depth in range(len(path)):
            domain = next(child for child in domain.children if child.path == path[: depth + 1])
        return domain

    def _table(self, domain: Domain) -> _Table:
        table = self._tables.get(domain.path)
        if table is None:
            table = self._tables[domain.path] = self._reckon(domain)
        return table

    def _reckon(self, domain: Domain) -> _Table:
        if domain.node is not None:
            room = self._table_room(domain)
            return _Table(room, [0] * (room + 1), [])
        costs, shares, room = [0], [], 0
        for child in domain.children:
            table = self._table(child)
            room += table.room
            costs, share = _with_child(costs, table, self._use(child) if table.room else 0, most=self._most)
            shares.append(share)
        return _Table(room, costs, shares)

    def _shared_out(self, domain: Domain, count: int) -> Iterable[tuple[_Path, int]]:
        """Walk the used nodes below the domain depth first, with the number of stages on each."""
        if count and domain.node is not None:
            yield domain.path, count
        elif count:
            shares = []
            for share in reversed(self._table(domain).shares):
                shares.append(share[count])
                count -= share[count]
            for child, part in zip(domain.children, reversed(shares), strict=True):
                yield from self._shared_out(child, part)

    def _forget(self, path: _Path) -> None:
        for depth in range(len(path) + 1):
            self._tables.pop(path[:depth], None)


def _with_child(costs: list[int], child: _Table, use: int, *, most: int) -> tuple[list[int], list[int]]:
    """Extend the costs of the children so far by one child; of equal ways the one that leaves it out comes first."""
    before = len(costs) - 1
    after = min(most, before + child.room)
    extended, share = [], []
    for count in range(after + 1):
        best, chosen = (costs[count], 0) if count <= before else (None, 0)
        for part in range(max(1, count - before), min(count, len(child.costs) - 1) + 1):
            cost = costs[count - part] + use + child.costs[part]
            if best is None or cost < best:
                best, chosen = cost, part
        assert best is not None, "before + child.room stages always fit"
        extended.append(best)
        share.append(chosen)
    return extended, share
