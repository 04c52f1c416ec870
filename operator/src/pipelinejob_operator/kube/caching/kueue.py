"""What is known of Kueue: our Workloads, and the flavors and priority classes they refer to, in the version served."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import structlog

from pipelinejob.base import names
from pipelinejob_operator.cluster import ClusterError, Key, Kueue, Object
from pipelinejob_operator.kube.api import Api, NotFoundError
from pipelinejob_operator.kube.caching import projection
from pipelinejob_operator.kube.caching.informer import Backoff, Change, Informer, Timings, without_managed_fields
from pipelinejob_operator.kube.caching.watched import Watch, Watched
from pipelinejob_operator.objects.peers.workload import KIND, workload_name

_log = structlog.get_logger(__name__)

_GROUP = "/apis/kueue.x-k8s.io"
_VERSIONS = ("v1beta2", "v1beta1")  # that we speak, the better first
_PLURALS = {"ResourceFlavor": "resourceflavors", "WorkloadPriorityClass": "workloadpriorityclasses"}
_PLURAL = "workloads"
_LOOK_AGAIN_S = 10.0  # for a Kueue that is not there, or not of our time


class KueueCache:
    """Kueue's objects, as last seen. Where the server has no Kueue, it looks again from time to time."""

    def __init__(
        self,
        api: Api,
        *,
        on_workload: Callable[[Change], None],
        on_other: Callable[[Change], None],
        on_listed: Callable[[], None],
        on_restart: Callable[[str], None],
        timings: Timings,
        namespaces: Sequence[str] = (),
    ) -> None:
        """Prepare; `run` does the work."""
        self._api = api
        self._on_workload, self._on_other = on_workload, on_other
        self._on_listed, self._on_restart = on_listed, on_restart
        self._timings = timings
        self._namespaces = namespaces
        self._version: str | None = None
        self._workloads: Watched | None = None
        self._others: Mapping[str, Watched] = {}
        self._searched = asyncio.Event()  # whether there is a Kueue

    @property
    def informers(self) -> Sequence[Informer]:
        """Return the caches, for health; none where there is no Kueue."""
        found = (self._workloads, *self._others.values()) if self._workloads else ()
        return tuple(chain.from_iterable(each.informers for each in found))

    async def run(self) -> None:
        """Find Kueue and keep the caches true, for ever."""
        self._version = await self._discover()
        self._workloads = self._watched(KIND, _PLURAL, self._on_workload, label=names.LABEL_JOB)
        self._others = {
            kind: self._watched(kind, plural, self._on_other, is_cluster_scoped=True)
            for kind, plural in _PLURALS.items()
        }
        self._searched.set()
        async with asyncio.TaskGroup() as tasks:
            for informer in self.informers:
                tasks.create_task(informer.run())

    async def wait_synced(self) -> None:
        """Wait until it is known whether there is a Kueue, and what it says."""
        await self._searched.wait()
        for informer in self.informers:
            await informer.synced.wait()

    def of(self, key: Key, uid: str) -> Kueue | None:
        """Return what concerns a job; None where there is no Kueue, or it was found just now."""
        if self._version is None or self._workloads is None or not all(each.synced.is_set() for each in self.informers):
            return None
        found = self._workloads.get(key.namespace, workload_name(key.name, uid))
        is_own = found is not None and projection.owner(found) == (key, uid)
        flavors, classes = (self._others[kind].objects() for kind in _PLURALS)
        return Kueue(
            api_version=f"{_GROUP.removeprefix('/apis/')}/{self._version}",
            workload=found if is_own else None,
            flavors={each["metadata"]["name"]: each for each in flavors},
            priority_classes={each["metadata"]["name"]: each for each in classes},
        )

    def path(self, namespace: str, name: str) -> str:
        """Say where a Workload stands."""
        assert self._version is not None, "without Kueue nothing is written to it"
        return f"{_GROUP}/{self._version}/namespaces/{namespace}/{_PLURAL}/{name}"

    def offer(self, item: dict[str, object]) -> None:
        """Take up what the API server answered to a write of a Workload."""
        if self._workloads:
            self._workloads.offer(item)

    async def _discover(self) -> str:
        backoff = Backoff(self._timings.min_backoff_s, self._timings.max_backoff_s)
        while True:
            try:
                group = await self._api.request("GET", _GROUP)
            except NotFoundError:
                self._searched.set()
                await asyncio.sleep(_LOOK_AGAIN_S)
            except ClusterError as error:
                _log.warning("Kueue's versions can't be read", error=str(error))
                await asyncio.sleep(backoff.next())
            else:
                served = {each["version"] for each in group.get("versions", ())}
                version = next((each for each in _VERSIONS if each in served), None)
                if version:
                    _log.info("Kueue is served", version=version)
                    return version
                _log.warning("Kueue serves no version that this operator speaks", served=sorted(served))
                self._searched.set()
                await asyncio.sleep(_LOOK_AGAIN_S)

    def _watched(
        self,
        kind: str,
        plural: str,
        on_change: Callable[[Change], None],
        *,
        label: str | None = None,
        is_cluster_scoped: bool = False,
    ) -> Watched:
        watch = Watch(
            api=self._api,
            namespaces=self._namespaces,
            timings=self._timings,
            on_listed=self._on_listed,
            on_restart=self._on_restart,
        )
        return watch.of(
            kind,
            (f"{_GROUP}/{self._version}", plural),
            on_change,
            without_managed_fields,
            label=label,
            is_optional=True,  # its kinds may be taken away again
            is_cluster_scoped=is_cluster_scoped,
        )


def job_of(change: Change) -> Key | None:
    """Return the job that a changed Workload belongs to."""
    item: Object | None = change.new or change.old
    owned = projection.owner(item) if item else None
    return owned[0] if owned else None
