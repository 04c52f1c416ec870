"""The room of the cluster: what is free, who holds what, and who waits, kept up to date by what changes.

Nothing here is stored anywhere else: `Room.refresh` takes up changes by the names of what changed,
and a room that is made anew from the cluster equals the one that was kept, but for promises that
the cluster does not show yet.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from typing import Any, TypeVar

from pipelinejob.base import names
from pipelinejob.fabric.topology import Profiles
from pipelinejob_operator.admission.capacity import Claim, Free, Promise, minus, plus, promise_of
from pipelinejob_operator.admission.holdings import Holdings
from pipelinejob_operator.admission.line.asking import asked_to_leave
from pipelinejob_operator.admission.line.priority import Priorities
from pipelinejob_operator.admission.line.queueing import Order, is_in_line, is_waiting
from pipelinejob_operator.admission.line.queueing import Rank as LineRank
from pipelinejob_operator.admission.line.standing import Line
from pipelinejob_operator.admission.nodes import Nodes
from pipelinejob_operator.admission.pods.admitted import AdmittedPods
from pipelinejob_operator.admission.pods.neighbours import Neighbours
from pipelinejob_operator.admission.withheld import Withheld
from pipelinejob_operator.cluster import Cluster, Journal, Key, Named, Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.topology_profiles import profiles_of

T = TypeVar("T")


class Room:
    """What is free, held, promised and waited for, at this moment."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        admitted: AdmittedPods,
        settings: ControllerSettings,
        read: Callable[[Object], Job],
        clock: Callable[[], datetime],
    ) -> None:
        """Prepare; `refresh` fills it. `read` parses a stored job."""
        self._cluster = cluster
        self._journal: Journal = cluster.journal()
        self._admitted = admitted
        self._settings = settings
        self._read = read
        self._clock = clock
        self._nodes = Nodes()
        self._holdings = Holdings(self._nodes)
        self._withheld = Withheld(self._nodes)
        self._keys: dict[Key, str] = {}
        self._jobs: dict[str, Job] = {}
        self._unshown: dict[str, Promise] = {}  # promises that the jobs' statuses do not show yet
        self._line = Line()
        self._askers: dict[str, Job] = {}
        self._changed_jobs: set[str] = set()
        self._others_notice: dict[str, object] = {}  # of each job what decisions about others, or itself, go by
        self._leaving_out: set[str] = set()  # jobs that wait, and leave out nodes that refused them
        self._leavers: set[str] = set()  # jobs that hold nodes and were told by their owner to leave
        self._profile_version = 0
        self._derived: dict[str, Any] = {}
        self.order = Order(priorities=Priorities())
        self.profiles: Profiles = {}
        self.version = 0  # goes up with all that a decision could notice

    # ---- what is known

    @property
    def nodes(self) -> Sequence[Object]:
        """All nodes, by name."""
        return self._nodes.all

    @property
    def free(self) -> Free:
        """What is free now, for anybody; while the line is worked through, of what was free as that began."""
        return self.derive("free", self._withheld.free) if self._withheld else self._nodes.free

    @property
    def empty(self) -> Free:
        """What would be free, were all work done."""
        return self._nodes.empty

    @property
    def node_version(self) -> tuple[int, int]:
        """What changes with what nodes and profiles are, whatever stands on them."""
        return self._nodes.version, self._profile_version

    @property
    def empty_version(self) -> int:
        """What changes with what would be free, were all work done."""
        return self._nodes.empty_version

    @property
    def waiting(self) -> Iterator[Job]:
        """The jobs that want room and have none, in the order of the line."""
        return (self._jobs[uid] for uid in self._line.uids if uid in self._line)

    @property
    def waiting_count(self) -> int:
        """How many jobs want room and have none."""
        return len(self._line)

    @property
    def holding_count(self) -> int:
        """How many jobs hold nodes, or were promised some."""
        return self._holdings.promised

    def is_waiting(self, uid: str) -> bool:
        """Whether a job wants room and has none."""
        return uid in self._line

    def take_changed(self) -> Iterable[str]:
        """The jobs that changed or went since this was called last, by uid."""
        changed, self._changed_jobs = self._changed_jobs, set()
        return changed

    def job(self, uid: str) -> Job | None:
        """The job as it was last seen."""
        return self._jobs.get(uid)

    @property
    def has_unshown_promises(self) -> bool:
        """Whether a job was promised room that its status does not show yet."""
        return bool(self._unshown)

    def is_unshown(self, uid: str) -> bool:
        """Whether a job was promised room that its status does not show yet."""
        return uid in self._unshown

    @property
    def asked(self) -> Mapping[str, Job]:
        """Who makes way for whom, by the uid of the one that was asked."""
        return self.derive("asked", self._asked)

    @property
    def running(self) -> tuple[Job, ...]:
        """The jobs that hold nodes and were not told to leave."""
        return self.derive("running", self._running)

    @property
    def leaving(self) -> Mapping[str, tuple[Claim, ...]]:
        """What pods hold that are ending, and jobs that were told to leave, by uid."""
        now = self._clock()
        # What outlives its grace is no longer counted on.
        second = int(now.timestamp()) if self._holdings.has_ending_pods else 0
        return self.derive(f"leaving {second}", lambda: self._leaving(now))

    def held(self, uid: str) -> tuple[Claim, ...]:
        """What a running job holds."""
        return tuple(self._holdings.claims(uid))

    def after(self, gone: Iterable[Job], *, kept: Iterable[Claim] = ()) -> Free:
        """What is free once these jobs are gone, and all that is leaving by now, but for what is kept."""
        freed = [*chain(*self.leaving.values()), *(each for job in gone for each in self._holdings.claims(job.uid))]
        return minus(plus(self.free, freed), kept)

    def free_without(self, uid: str, nodes: Iterable[str]) -> Free:
        """What is free on some nodes for a job that holds or was promised a part of them."""
        own = self._holdings.contributors(uid)
        found = ((name, self._nodes.free_but_for(own, name)) for name in nodes)
        return {name: left for name, left in found if left is not None}

    def neighbours(self, wanted: Callable[[Object], object] = lambda _: True) -> Neighbours:
        """The pods that stand on nodes, or some of them."""
        return self._holdings.neighbours(wanted)

    @property
    def pod_version(self) -> tuple[int, int]:
        """What changes with all that rules of pods for one another could notice."""
        return self._holdings.pod_version, self.shy_version

    @property
    def changes_by_time(self) -> bool:
        """Whether time alone may change a decision: pods end, nodes are left out for a while."""
        return self._holdings.has_ending_pods or bool(self._leaving_out)

    @property
    def shy_version(self) -> int:
        """What changes with all that pods which keep others away could notice."""
        return self.version if self._holdings.has_shy_pods else 0

    def derive(self, what: str, reckon: Callable[[], T]) -> T:
        """Reckon something that follows from all this, once for as long as nothing changes."""
        if what not in self._derived:
            self._derived[what] = reckon()
        found: T = self._derived[what]
        return found

    def place(self, uid: str) -> LineRank | None:
        """What sorts a waiting job among the others; None if it does not wait."""
        return self._line.rank(uid)

    # ---- what changes

    @contextmanager
    def as_it_stands(self) -> Iterator[Sequence[str]]:
        """Give the line as it stands now, by uid, first first; what comes free until the block ends is withheld.

        It may belong to jobs that come to stand ahead of those whose turn it is by then: such as
        restart.
        """
        self._withheld.begin()
        try:
            yield self._line.uids
        finally:
            if self._withheld.end():
                self._changed()

    def refresh(self) -> bool:
        """Take up what changed since this was called last; tell whether a decision could notice."""
        before, is_reordered = self.version, False
        with self._withheld.noting():
            for each in self._journal.take():
                is_reordered |= self._take(each)
        if is_reordered:
            self._reorder()
        return self.version != before

    def promise(self, job: Job, claims: Mapping[Rank, Claim]) -> None:
        """Promise a waiting job its room, before its status is written."""
        attempt = max(1, job.status.attempt)
        self._unshown[job.uid] = Promise(uid=job.uid, attempt=attempt, generation=job.generation, claims=claims)
        self._put_promise(job.uid)
        self._put_in_line(job)

    def take_back(self, uid: str) -> None:
        """Take back a promise that was certainly not written."""
        if self._unshown.pop(uid, None) is not None:
            with self._withheld.noting():
                self._put_promise(uid)
            if (job := self._jobs.get(uid)) is not None:
                self._put_in_line(job)

    def reconsider(self, uid: str) -> None:
        """Read anew what a job was promised: what its pods ask for has turned out to be something else."""
        if uid in self._jobs:
            with self._withheld.noting():
                self._put_promise(uid)

    def state(self) -> dict[str, object]:
        """All that follows from the cluster, to be compared with that of another room."""
        return {
            "nodes": [node["metadata"]["name"] for node in self.nodes],
            "free": dict(self.free),
            "empty": dict(self.empty),
            "line": self._line.uids,
            "running": {job.uid for job in self.running},
            "held": {job.uid: sorted(self.held(job.uid), key=str) for job in self.running},
            "leaving": {uid: sorted(claims, key=str) for uid, claims in self.leaving.items()},
            "asked": {uid: asker.uid for uid, asker in self.asked.items()},
        }

    # ---- taking up

    def _take(self, named: Named) -> bool:
        """Take up one change; tell whether the order of the line may have changed."""
        match named.kind:
            case "Pod":
                pod = self._cluster.pod_by_name(named.namespace, named.name)
                if self._holdings.put_pod((named.namespace, named.name), pod):
                    self._changed()
            case "Node":
                self._take_node(named.name, self._cluster.node(named.name))
            case names.KIND:
                self._take_job(Key(named.namespace, named.name), self._cluster.job(Key(named.namespace, named.name)))
            case names.PROFILE_KIND:
                self._take_profiles()
            case "PriorityClass":
                return self._take_priorities()
        return False

    def _take_profiles(self) -> None:
        profiles = profiles_of(self._cluster.topology_profiles())
        if profiles != self.profiles:
            self.profiles = profiles
            self._profile_version += 1
            self._changed()

    def _take_priorities(self) -> bool:
        priorities = Priorities.read(self._cluster.priority_classes())
        if priorities == self.order.priorities:
            return False
        self.order = Order(priorities=priorities)
        self._changed()
        return True

    def _take_node(self, name: str, raw: Object | None) -> None:
        if self._nodes.put(name, raw):
            self._changed()

    def _take_job(self, key: Key, raw: Object | None) -> None:
        uid = raw["metadata"]["uid"] if raw is not None else None
        old = self._keys.get(key)
        if old is not None and old != uid:
            self._drop_job(key, old)
        if raw is None or uid is None:
            return
        job = self._read(raw)
        known = self._jobs.get(uid)
        if known is job or known == job:
            return
        self._changed_jobs.add(uid)
        self._keys[key], self._jobs[uid] = uid, job
        self._put_promise(uid)
        if self._put_in_line(job):
            self._changed()

    def _drop_job(self, key: Key, uid: str) -> None:
        del self._keys[key], self._jobs[uid]
        self._unshown.pop(uid, None)
        self._changed_jobs.add(uid)
        self._others_notice.pop(uid, None)
        self._leavers.discard(uid)
        self._leaving_out.discard(uid)
        if self._askers.pop(uid, None):
            self._changed()
        self._put_promise(uid)
        self._leave_line(uid)

    def _put_in_line(self, job: Job) -> bool:
        """Put a job where it stands now; tell whether anybody else could notice."""
        uid, before = job.uid, self._others_notice.get(job.uid)
        is_leaver = job.is_deleting or (job.spec is not None and job.spec.suspend)
        (self._leavers.add if is_leaver else self._leavers.discard)(uid)
        if job.status.preempts and is_in_line(job):
            self._askers[uid] = job
        else:
            self._askers.pop(uid, None)
        rank = self.order.rank(job)
        stands = is_waiting(job) and self._holdings.promise(uid) is None
        status, in_line = job.status, stands and is_in_line(job)
        (self._leaving_out.add if stands and status.refused_nodes else self._leaving_out.discard)(uid)
        now = (is_leaver, in_line, status.preempts, status.waits_for, status.refused_nodes, status.preempted_by)
        self._others_notice[uid] = now
        if self._line.rank(uid) != (rank if stands else None):
            self._leave_line(uid)
            if stands:
                self._line.enter(uid, rank)
            return True
        return before != now

    def _leave_line(self, uid: str) -> None:
        if self._line.leave(uid):
            self._changed()

    def _reorder(self) -> None:
        for job in self._jobs.values():
            self._put_in_line(job)

    # ---- promises

    def _put_promise(self, uid: str) -> None:
        """Have nodes hold what a job was promised, as its status shows it or as it was decided a moment ago."""
        job = self._jobs.get(uid)
        unshown = self._unshown.get(uid)
        if unshown is not None and (job is None or unshown.is_settled_by(job)):
            del self._unshown[uid]
            unshown = None
        promise = unshown or (self._shown(job) if job is not None else None)
        if self._holdings.put_promise(uid, promise):
            self._changed()

    def _shown(self, job: Job) -> Promise | None:
        if not job.is_placed or job.is_finished:
            return None
        promise = promise_of(job, self._admitted)
        return promise if promise.claims else None

    # ---- what follows

    def _changed(self) -> None:
        self.version += 1
        self._derived.clear()

    def _asked(self) -> Mapping[str, Job]:
        if not self._askers:
            return {}
        wanted = {each.uid for asker in self._askers.values() for each in asker.status.preempts}
        known = [*self._askers.values(), *(self._jobs[uid] for uid in wanted if uid in self._jobs)]
        return asked_to_leave(known, self.order.priorities)

    def _running(self) -> tuple[Job, ...]:
        return tuple(job for uid, job in self._jobs.items() if self._stays(uid))

    def _stays(self, uid: str) -> bool:
        return self._holdings.promise(uid) is not None and uid not in self._leavers and uid not in self.asked

    def _leaving(self, now: datetime) -> Mapping[str, tuple[Claim, ...]]:
        found: dict[str, list[Claim]] = {}
        for uid, claimed in self._holdings.ending(now, overdue_s=self._settings.node_loss_toleration_s):
            if not self._stays(uid):
                found.setdefault(uid, []).append(claimed)
        for uid in (*self._leavers, *self.asked):
            if self._holdings.promise(uid) is not None:
                found.setdefault(uid, []).extend(self._holdings.claims(uid))
        return {uid: tuple(claims) for uid, claims in found.items()}
