"""What every node has left, kept up to date: what it can give, less what is taken and promised of it."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from pipelinejob.base.quantities import Resources, add
from pipelinejob_operator.admission.capacity import Claim, Free, allocatable, what_is_left
from pipelinejob_operator.cluster import Object


@dataclass(slots=True)
class _Node:
    raw: Object
    whole: Resources
    taken: dict[Hashable, Resources] = field(default_factory=dict)  # by whom
    standing: dict[Hashable, Resources] = field(default_factory=dict)  # of that, by daemons and static pods


class Nodes:
    """Nodes, and who takes what of them. What is taken of a node that is not there counts once it comes."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._absent: dict[str, _Node] = {}
        self._free: dict[str, Resources] = {}
        self._empty: dict[str, Resources] = {}
        self._stale: set[str] = set()
        self._renewed: set[str] = set()  # of these, those that came, or are others themselves
        self._sorted: tuple[Object, ...] | None = ()
        self.version = 0  # goes up with what nodes are, whatever stands on them
        self.empty_version = 0  # with what would be free, were all work done

    @property
    def all(self) -> Sequence[Object]:
        """All nodes, by name."""
        if self._sorted is None:
            self._sorted = tuple(self._nodes[name].raw for name in sorted(self._nodes))
        return self._sorted

    @property
    def free(self) -> Free:
        """What is free now, for anybody."""
        self.settle()
        return self._free

    @property
    def empty(self) -> Free:
        """What would be free, were all work done."""
        self.settle()
        return self._empty

    def free_but_for(self, own: Iterable[Hashable], name: str) -> Resources | None:
        """What is free on a node for those who take a part of it themselves; None if the node is not there."""
        node = self._nodes.get(name)
        if node is None:
            return None
        mine = frozenset(own)
        return what_is_left(node.whole, add(taken for by, taken in node.taken.items() if by not in mine))

    def put(self, name: str, raw: Object | None) -> bool:
        """Take a node as it is now, None if it is gone; tell whether that changes anything."""
        known = self._nodes.get(name)
        if raw is None:
            if known is None:
                return False
            self._absent[name] = self._nodes.pop(name)
            self._free.pop(name, None)
            self._empty.pop(name, None)
        elif known is None:
            taken = self._absent.pop(name, None)
            node = self._nodes[name] = _Node(raw, allocatable(raw))
            if taken is not None:
                node.taken, node.standing = taken.taken, taken.standing
        elif _is_same(known.raw, raw):
            return False
        else:
            known.raw, known.whole = raw, allocatable(raw)
        self._stale.add(name)
        self._renewed.add(name)
        self._sorted = None
        self.version += 1
        self.empty_version += 1
        return True

    def take(self, claim: Claim, by: Hashable, *, is_standing: bool = False) -> None:
        """Have somebody take a part of a node."""
        node = self._of(claim.node)
        if node.taken.get(by) == claim.requests:
            return
        node.taken[by] = claim.requests
        if is_standing:
            node.standing[by] = claim.requests
            self.empty_version += 1
        self._stale.add(claim.node)

    def give_back(self, name: str, by: Hashable) -> None:
        """Have somebody give back what he took of a node."""
        node = self._of(name)
        node.taken.pop(by, None)
        if node.standing.pop(by, None) is not None:
            self.empty_version += 1
        if not node.taken:
            self._absent.pop(name, None)
        self._stale.add(name)

    def _of(self, name: str) -> _Node:
        found = self._nodes.get(name)
        return found if found is not None else self._absent.setdefault(name, _Node({}, {}))

    def settle(self) -> dict[str, tuple[Resources, Resources]]:
        """Reckon what is left on the nodes on which something changed; return what was left before, and what is now.

        On a node that came, or is another itself, nothing was: who may stand there now perhaps
        could not then.
        """
        changed: dict[str, tuple[Resources, Resources]] = {}
        for name in self._stale:
            node = self._nodes.get(name)
            if node is not None:
                before = {} if name in self._renewed else self._free.get(name, {})
                self._free[name] = what_is_left(node.whole, add(node.taken.values()))
                self._empty[name] = what_is_left(node.whole, add(node.standing.values()))
                changed[name] = before, self._free[name]
        self._stale.clear()
        self._renewed.clear()
        return changed


def _is_same(old: Object, new: Object) -> bool:
    """Whether two states of a node differ in no more than their version."""

    def without_version(node: Object) -> Object:
        return {key: value for key, value in node["metadata"].items() if key != "resourceVersion"}

    is_same_inside = (old.get("spec"), old.get("status")) == (new.get("spec"), new.get("status"))
    return is_same_inside and without_version(old) == without_version(new)
