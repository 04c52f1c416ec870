"""What the controller needs of a cluster, and no more: a protocol with a Kubernetes and a local implementation.

Objects are the API's own JSON, as plain mappings: the controller's decisions read the same over a
real API server and over this machine's processes. Reads come from a cache and cost nothing; writes
go through and raise ClusterError subclasses.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pipelinejob.base import names
from pipelinejob.contract.incarnation import GivenRank, Incarnation
from pipelinejob.contract.progress import Progress

Object = Mapping[str, Any]


Change = tuple[Object, Mapping[str, Any]]  # an object as it was read, and the fields that are to change


class Key(NamedTuple):
    """Names a PipelineJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Names one object of the cluster; a namesake made since has another `uid`."""

    kind: str
    namespace: str
    name: str
    uid: str
    grace_s: int | None = None  # None: a pod's own; 0: for one that does not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What `kubectl describe` tells of a job or a pod: `type` is Normal or Warning, `reason` one CamelCase word."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kueue:
    """What the cluster's Kueue says that concerns one job."""

    api_version: str  # the one that is served
    workload: Object | None  # the job's own
    flavors: Mapping[str, Object]  # ResourceFlavors by name
    priority_classes: Mapping[str, Object]  # WorkloadPriorityClasses by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaler:
    """What became of one job's request for nodes."""

    is_served: bool  # whether there is an API to ask by
    request: Object | None  # the job's own
    templates: frozenset[str]  # names of the pod templates that stand for it


class ClusterError(Exception):
    """The cluster refused or could not be reached; the pass is retried."""


class UnavailableError(ClusterError):
    """The cluster did not answer, or not now (overload, a proxy's error page); the same may well succeed soon."""


class ConflictError(ClusterError):
    """The object changed since it was read."""


class ForbiddenError(ClusterError):
    """Admission refused the object (quota, Pod Security, a policy); the message is the API server's."""


class InvalidError(ClusterError):
    """The API server found the object invalid; the message says where. Retrying the same is useless."""


class TooLargeError(InvalidError):
    """The object is larger than the cluster stores, or than its API server reads."""


class NameTakenError(ClusterError):
    """An object of another owner stands under the name; the message says which and whose. It was not touched."""


class Named(NamedTuple):
    """An object by its name; the namespace is empty for kinds that have none."""

    kind: str
    namespace: str
    name: str


class Journal(Protocol):
    """What changed in a cluster, for one reader that keeps account of it."""

    def take(self) -> Iterable[Named]:
        """Name the jobs, pods, nodes, PriorityClasses and TopologyProfiles that changed, or went, since the last call.

        The first call names all there are. How an object stands now is read from the cluster, not
        from here.
        """


class Cluster(Protocol):
    """A place where jobs, pods and nodes live."""

    def journal(self) -> Journal:
        """Begin to keep account of changes, for one reader."""

    def job(self, key: Key) -> Object | None:
        """Return the PipelineJob, or None if there is none."""

    def jobs(self) -> Sequence[Object]:
        """Return all PipelineJobs."""

    def chains(self, key: Key) -> Sequence[Object]:
        """Return the PipelineJobs controlled by this job's uid."""

    def pods(self, key: Key) -> Sequence[Object]:
        """Return the pods controlled by this job's uid."""

    def pod_by_name(self, namespace: str, name: str) -> Object | None:
        """Return the pod of this name, whoever owns it."""

    def furniture(self, key: Key) -> Sequence[Object]:
        """Return what this job's uid controls beside pods: config map, services and budget, or what is kept of them."""

    def all_pods(self) -> Sequence[Object]:
        """Return all pods that take capacity from nodes, whoever owns them, and all of ours."""

    def nodes(self) -> Sequence[Object]:
        """Return all nodes."""

    def node(self, name: str) -> Object | None:
        """Return the node of this name."""

    def priority_classes(self) -> Sequence[Object]:
        """Return all PriorityClasses."""

    def topology_profiles(self) -> Sequence[Object]:
        """Return all TopologyProfiles."""

    def kueue(self, key: Key) -> Kueue | None:
        """Return what Kueue says of this job; None where there is no Kueue, or the operator was told of none."""

    def autoscaler(self, key: Key) -> Autoscaler | None:
        """Return what became of the job's request for nodes; None where the operator was not told to ask for any."""

    async def look_up(self, kind: str, namespace: str, name: str) -> Object | None:
        """Read an object, whoever owns it, or None if there is none; this one goes to the API server each time.

        Raises ForbiddenError where this process may not.
        """

    async def admitted(self, pod: Object) -> Object:
        """Return a new pod as it would be stored, with all that admission changes, and store nothing.

        Raises ForbiddenError or InvalidError where it would be refused, or cannot be told without
        storing it.
        """

    async def progress(self, pod: Object) -> Progress | None:
        """Ask a running trainer how far it is; None if it does not answer."""

    async def tell(self, pod: Object, incarnation: Incarnation) -> None:
        """Tell a running trainer who meets next; one that does not take it will say that it still waits."""

    async def tell_rank(self, pod: Object, rank: GivenRank) -> None:
        """Tell a spare whose place it takes; one that does not hear it will say that it is still a spare."""

    async def pod_events(self, pod: Object) -> Sequence[Event]:
        """Return what was told of a pod of late, the newest last; nothing where this process cannot read it."""

    async def apply(self, item: Object) -> None:
        """Create an object without a uid; of one with a uid, that stands, bring the fields it states to what it states.

        Raises NameTakenError if another's stands under the name of a new one, UnavailableError if
        that is about to go, ConflictError if the one that is meant has gone, or stands already,
        which a later pass sees.
        """

    async def change_pod(self, pod: Object, changes: Mapping[str, Any]) -> None:
        """Change these fields of a pod and no other: a strategic merge patch, as `kubectl patch` sends it.

        Raises ConflictError if that pod is gone.
        """

    async def delete(self, reference: Reference) -> None:
        """Delete exactly this one; absent is done. Pods get their own grace period."""

    async def write_status(self, job: Object, status: Mapping[str, Any]) -> None:
        """Replace the job's status.

        Raises ConflictError if the job changed since `job` was read, TooLargeError if the cluster
        stores no such.
        """

    async def patch_status(self, item: Object, status: Mapping[str, Any]) -> None:
        """Change fields of the status of another's object: a None takes a field away.

        Raises ConflictError if the object changed since `item` was read.
        """

    async def emit(self, job: Object, event: Event) -> None:
        """Record an event on the job; best effort."""


class WholeJournal:
    """A journal of a small cluster: it names everything each time, and what went since."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: set[Named] = set()

    def take(self) -> Iterable[Named]:
        """Name all there is, and what was there at the last call."""
        read = {
            names.KIND: self._cluster.jobs,
            "Pod": self._cluster.all_pods,
            "Node": self._cluster.nodes,
            "PriorityClass": self._cluster.priority_classes,
            names.PROFILE_KIND: self._cluster.topology_profiles,
        }
        now = {named(kind, item) for kind, items in read.items() for item in items()}
        found, self._known = now | self._known, now
        return sorted(found)


def named(kind: str, item: Object) -> Named:
    """The name of an object."""
    return Named(kind, item["metadata"].get("namespace", ""), item["metadata"]["name"])
