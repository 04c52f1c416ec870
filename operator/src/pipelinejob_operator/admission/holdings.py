"""Who holds what of the nodes: pods what they ask for, jobs what they were promised until their pods stand."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain

from pipelinejob_operator.admission.capacity import Claim, Promise, belongs_to_node, claim, identity
from pipelinejob_operator.admission.nodes import Nodes
from pipelinejob_operator.admission.pods.neighbours import Neighbours, apart_terms
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.job import Rank, parse_time

PodName = tuple[str, str]  # namespace and name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pod:
    """What a pod holds, and of whom it is."""

    raw: Object
    claim: Claim | None
    uid: str  # of its controller
    attempt: int
    rank: Rank
    is_standing: bool
    deleted: str | None  # when its end began

    @classmethod
    def read(cls, raw: Object) -> "_Pod":
        uid, attempt, rank = identity(raw)
        return cls(
            raw=raw,
            claim=claim(raw),
            uid=uid,
            attempt=attempt,
            rank=rank,
            is_standing=belongs_to_node(raw),
            deleted=raw["metadata"].get("deletionTimestamp"),
        )

    def effect(self) -> tuple[object, ...]:
        """What others notice of it."""
        return self.claim, self.uid, self.attempt, self.rank, self.is_standing, self.deleted


@dataclass(slots=True)
class _Gang:
    """The pods and the promise of one job, or of any other controller of pods."""

    pods: dict[PodName, _Pod] = field(default_factory=dict)
    covered: dict[tuple[int, Rank], int] = field(default_factory=dict)  # pods that hold what was promised to a rank
    promise: Promise | None = None


class Holdings:
    """All pods and promises; each holds its part of a node exactly once."""

    def __init__(self, nodes: Nodes) -> None:
        """Begin with none; `nodes` are told what is taken of them."""
        self._nodes = nodes
        self._pods: dict[PodName, _Pod] = {}
        self._gangs: dict[str, _Gang] = {}
        self._where: dict[tuple[str, int, Rank], str] = {}  # the nodes of promises that no pod holds yet
        self._ending: dict[PodName, _Pod] = {}
        self._shy: dict[PodName, Object] = {}
        self.promised = 0  # jobs that hold nodes, or were promised some
        self.pod_version = 0  # goes up with what pods' rules for their neighbours could notice

    @property
    def has_shy_pods(self) -> bool:
        """Whether a pod somewhere keeps others away."""
        return bool(self._shy)

    @property
    def has_ending_pods(self) -> bool:
        """Whether the room of a pod is about to come free, or to turn out lost."""
        return bool(self._ending)

    def neighbours(self, wanted: Callable[[Object], object]) -> Neighbours:
        """The pods that stand on nodes, or some of them."""
        return Neighbours(lambda: [pod.raw for pod in tuple(self._pods.values())], tuple(self._shy.values()), wanted)

    def promise(self, uid: str) -> Promise | None:
        """What a job holds or was promised, None if nothing."""
        gang = self._gangs.get(uid)
        return gang.promise if gang else None

    def claims(self, uid: str) -> Iterator[Claim]:
        """What a job holds: by the pods of its present attempt, else as it was promised."""
        gang = self._gangs.get(uid)
        if gang is None or gang.promise is None:
            return
        attempt = gang.promise.attempt
        yield from (pod.claim for pod in gang.pods.values() if pod.claim and pod.attempt == attempt)
        for rank, promised in gang.promise.claims.items():
            if (attempt, rank) not in gang.covered:
                yield promised

    def ending(self, now: datetime, *, overdue_s: float) -> Iterator[tuple[str, Claim]]:
        """What pods are giving back that are of no present attempt, with the uid of whom they are."""
        for pod in self._ending.values():
            promise = self.promise(pod.uid)
            is_present = promise is not None and promise.attempt == pod.attempt
            if pod.claim and not (is_present or pod.is_standing) and _is_ending(pod, overdue_s, now):
                yield pod.uid, pod.claim

    def contributors(self, uid: str) -> frozenset[Hashable]:
        """The names under which a job takes parts of nodes."""
        gang = self._gangs.get(uid, _Gang())
        promise = gang.promise
        promised = ((uid, promise.attempt, rank) for rank in promise.claims) if promise else ()
        return frozenset[Hashable](chain(gang.pods, promised))

    # ---- changes

    def put_pod(self, name: PodName, raw: Object | None) -> bool:
        """Take a pod as it is now, None if it is gone; tell whether what is held has changed."""
        known = self._pods.get(name)
        pod = None if raw is None else _Pod.read(raw)
        if known is not None and pod is not None and known.effect() == pod.effect():
            self._pods[name] = pod
            self._gangs[pod.uid].pods[name] = pod
            self._take_rules(name, known.raw, pod)
            return False
        if known is not None:
            self._drop_pod(name, known)
        if pod is not None:
            self._add_pod(name, pod)
        self._take_rules(name, known.raw if known else None, pod)
        return self._beyond_promise(known) != self._beyond_promise(pod)

    def put_promise(self, uid: str, promise: Promise | None) -> bool:
        """Have nodes hold what a job was promised; tell whether that has changed."""
        gang = self._gangs.get(uid)
        if gang is None:
            if promise is None:
                return False
            gang = self._gangs[uid] = _Gang()
        before = gang.promise
        if promise == before:
            return False
        gang.promise = promise
        self.promised += (promise is not None) - (before is not None)
        for each in filter(None, (before, promise)):
            for rank in each.claims:
                self._settle_rank(uid, gang, (each.attempt, rank))
        if promise is None and not gang.pods:
            del self._gangs[uid]
        return True

    def _beyond_promise(self, pod: _Pod | None) -> object:
        """What a pod changes for others: nothing, if it takes no more than what was promised to its rank anyhow."""
        if pod is None or pod.claim is None:
            return None
        promise = self.promise(pod.uid)
        is_present = promise is not None and promise.attempt == pod.attempt and pod.deleted is None
        if is_present and promise is not None and promise.claims.get(pod.rank) == pod.claim:
            return None
        return pod.effect()

    def _take_rules(self, name: PodName, before: Object | None, pod: _Pod | None) -> None:
        is_shy = pod is not None and bool(apart_terms(pod.raw))
        if is_shy and pod is not None:
            self._shy[name] = pod.raw
        was_shy = name in self._shy and not is_shy
        if was_shy:
            del self._shy[name]
        if is_shy or was_shy or (before is None) != (pod is None) or (before and pod and _moved(before, pod.raw)):
            self.pod_version += 1

    def _add_pod(self, name: PodName, pod: _Pod) -> None:
        self._pods[name] = pod
        gang = self._gangs.setdefault(pod.uid, _Gang())
        gang.pods[name] = pod
        if pod.claim is None:
            return
        self._nodes.take(pod.claim, name, is_standing=pod.is_standing)
        if pod.deleted is not None:
            self._ending[name] = pod
        rank = (pod.attempt, pod.rank)
        gang.covered[rank] = gang.covered.get(rank, 0) + 1
        self._settle_rank(pod.uid, gang, rank)

    def _drop_pod(self, name: PodName, pod: _Pod) -> None:
        del self._pods[name]
        gang = self._gangs[pod.uid]
        del gang.pods[name]
        self._ending.pop(name, None)
        if pod.claim is not None:
            self._nodes.give_back(pod.claim.node, name)
            rank = (pod.attempt, pod.rank)
            gang.covered[rank] -= 1
            if not gang.covered[rank]:
                del gang.covered[rank]
            self._settle_rank(pod.uid, gang, rank)
        if not gang.pods and gang.promise is None:
            self._gangs.pop(pod.uid, None)

    def _settle_rank(self, uid: str, gang: _Gang, which: tuple[int, Rank]) -> None:
        """Have a promise hold room exactly as long as no pod of its rank does."""
        attempt, rank = which
        contributor = (uid, attempt, rank)
        promise = gang.promise
        promised = promise.claims.get(rank) if promise is not None and promise.attempt == attempt else None
        before = self._where.get(contributor)
        if promised is not None and which not in gang.covered:
            self._nodes.take(promised, contributor)
            self._where[contributor] = promised.node
            if before is not None and before != promised.node:
                self._nodes.give_back(before, contributor)
        elif before is not None:
            del self._where[contributor]
            self._nodes.give_back(before, contributor)


def _is_ending(pod: _Pod, overdue_s: float, now: datetime) -> bool:
    # A pod that outlives its grace may do so for ever: its node is lost. Nobody may build on its
    # room.
    return pod.deleted is not None and (now - parse_time(pod.deleted)).total_seconds() <= overdue_s


def _moved(before: Object, after: Object) -> bool:
    """Tell whether rules of pods for their neighbours could notice the difference."""
    fields = (("metadata", "labels"), ("spec", "nodeName"), ("status", "phase"), ("status", "nominatedNodeName"))
    return any(before.get(part, {}).get(each) != after.get(part, {}).get(each) for part, each in fields)
