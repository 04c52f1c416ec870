"""What the controller needs of a cluster, and no more: a protocol with a Kubernetes and a local implementation.

Objects are the API's own JSON, as plain mappings: the controller's decisions read the same over a real API server and
over this machine's processes. Reads come from a cache and cost nothing; writes go through and raise ClusterError
subclasses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pipelinejob.progress import Progress

Object = Mapping[str, Any]


class Key(NamedTuple):
    """Names a PipelineJob."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Names an object of the cluster; `uid` guards a delete against a namesake made since."""

    kind: str
    namespace: str
    name: str
    uid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What `kubectl describe` tells of a job: `type` is Normal or Warning, `reason` one CamelCase word."""

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


class Cluster(Protocol):
    """A place where jobs, pods and nodes live."""

    def job(self, key: Key) -> Object | None:
        """Give the PipelineJob, or None if there is none."""

    def jobs(self) -> Sequence[Object]:
        """Give all PipelineJobs."""

    def pods(self, key: Key) -> Sequence[Object]:
        """Give the pods controlled by this job's uid."""

    def furniture(self, key: Key) -> Sequence[Object]:
        """Give what this job's uid controls beside pods: its config map and its service, or what is kept of them."""

    def all_pods(self) -> Sequence[Object]:
        """Give all pods that take capacity from nodes, whoever owns them, and all of ours."""

    def nodes(self) -> Sequence[Object]:
        """Give all nodes."""

    def priority_classes(self) -> Sequence[Object]:
        """Give all PriorityClasses."""

    def topology_profiles(self) -> Sequence[Object]:
        """Give all TopologyProfiles."""

    def kueue(self, key: Key) -> Kueue | None:
        """Give what Kueue says of this job; None where there is no Kueue, or the operator was told of none."""

    async def config_map(self, namespace: str, name: str) -> Object | None:
        """Read a config map of a user's, or None if there is none; this one goes to the API server each time.

        Raises ForbiddenError where this process may not.
        """

    async def progress(self, pod: Object) -> Progress | None:
        """Ask a running trainer how far it is; None if it does not answer."""

    async def apply(self, item: Object) -> None:
        """Create the object or bring the fields it states to what it states (server-side apply)."""

    async def delete(self, reference: Reference) -> None:
        """Delete; absent is done. Pods get their own grace period."""

    async def write_status(self, job: Object, status: Mapping[str, Any]) -> None:
        """Replace the job's status.

        Raises ConflictError if the job changed since `job` was read.
        """

    async def patch_status(self, item: Object, status: Mapping[str, Any]) -> None:
        """Change fields of the status of another's object: a None takes a field away.

        Raises ConflictError if the object changed since `item` was read.
        """

    async def emit(self, job: Object, event: Event) -> None:
        """Record an event on the job; best effort."""
