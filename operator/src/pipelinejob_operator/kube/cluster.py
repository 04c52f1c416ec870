"""A Cluster that is Kubernetes: reads come from informers' caches, writes go to the API server.

Every write passes the fence first, and what the API server answers goes into the cache at once, so
that the next pass sees its own writes.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import aiohttp

from pipelinejob.base import names
from pipelinejob.contract.incarnation import GivenRank, Incarnation
from pipelinejob.contract.progress import Progress
from pipelinejob_operator.cluster import (
    Autoscaler,
    ConflictError,
    Event,
    Journal,
    Key,
    Kueue,
    Object,
    Reference,
    named,
)
from pipelinejob_operator.kube.api import MERGE, STRATEGIC, Api, NotFoundError
from pipelinejob_operator.kube.caching import projection
from pipelinejob_operator.kube.caching.informer import Change, Informer, Timings, without_managed_fields
from pipelinejob_operator.kube.caching.kueue import KueueCache
from pipelinejob_operator.kube.caching.provisioning import FOLDERS as PROVISIONING
from pipelinejob_operator.kube.caching.provisioning import ProvisioningCache, on_request
from pipelinejob_operator.kube.caching.reactions import Hooks, Reactions
from pipelinejob_operator.kube.caching.watched import Watch, Watched
from pipelinejob_operator.kube.pod_events import read_pod_events
from pipelinejob_operator.kube.recorder import EventMetrics, Recorder
from pipelinejob_operator.kube.trainers import ask_progress, tell_incarnation, tell_rank
from pipelinejob_operator.kube.writes import MANAGER, Writes
from pipelinejob_operator.objects.making.chains import BUDGET
from pipelinejob_operator.objects.peers.provisioning import KIND as PROVISIONING_KIND
from pipelinejob_operator.objects.peers.workload import KIND as WORKLOAD

_JOBS = f"/apis/{names.API_VERSION}"
_FOLDERS: Final = {
    "Pod": ("/api/v1", "pods"),
    "Service": ("/api/v1", "services"),
    "Node": ("/api/v1", "nodes"),
    "PriorityClass": ("/apis/scheduling.k8s.io/v1", "priorityclasses"),
    "ConfigMap": ("/api/v1", "configmaps"),
    BUDGET: ("/apis/policy/v1", "poddisruptionbudgets"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "PersistentVolume": ("/api/v1", "persistentvolumes"),
    names.KIND: (_JOBS, names.PLURAL),
    names.PROFILE_KIND: (_JOBS, names.PROFILE_PLURAL),
    **PROVISIONING,
}


class KubeCluster:
    """The Cluster protocol over an API server."""

    def __init__(
        self,
        api: Api,
        *,
        hooks: Hooks,
        instance: str,
        session: aiohttp.ClientSession,
        timings: Timings | None = None,
        namespaces: Sequence[str] = (),
        kueue: bool = False,
        provisioning: bool = False,
        event_metrics: EventMetrics | None = None,
    ) -> None:
        """Prepare; `run` keeps the caches true. `session` is for the trainers' own ports, never for the API server.

        Of kinds that stand in namespaces only those of `namespaces` are seen; all where it is
        empty. `kueue` and `provisioning` say that there may be a Kueue, and an autoscaler that
        takes ProvisioningRequests, and that this process may read and write their objects.
        """
        self._api = api
        self._hooks = hooks
        self._session = session
        self._namespaces = tuple(namespaces)
        self._timings = timings or Timings()
        self._recorder = Recorder(api, instance=instance, metrics=event_metrics)
        self._writes = Writes(api, path=self._path, check_fence=hooks.check_fence, take_up=self._take_up)
        self._reactions = react = Reactions(hooks, jobs=self.jobs)
        self._jobs = self._watched(names.KIND, react.on_job, projection.job)
        self._pods = self._watched("Pod", react.on_pod, projection.pod)
        self._nodes = self._watched("Node", react.on_node, projection.node, is_cluster_scoped=True)
        # Who may not read these does without: no priorities but 0, and no profile but what is
        # packaged.
        self._priorities, self._profiles = (
            self._watched(kind, on_change, without_managed_fields, is_cluster_scoped=True, is_optional=True)
            for kind, on_change in (("PriorityClass", react.on_priority), (names.PROFILE_KIND, react.on_profile))
        )
        self._furniture = {
            kind: self._watched(kind, react.on_furniture, projection.furniture, label=names.LABEL_JOB)
            for kind in ("ConfigMap", "Service", BUDGET)
        }
        self._kueue = self._kueue_cache() if kueue else None
        self._provisioning = self._provisioning_cache() if provisioning else None

    @property
    def _journaled(self) -> Mapping[str, Watched]:
        return {
            names.KIND: self._jobs,
            "Pod": self._pods,
            "Node": self._nodes,
            "PriorityClass": self._priorities,
            names.PROFILE_KIND: self._profiles,
        }

    # ---- life

    @property
    def informers(self) -> tuple[Informer, ...]:
        """Return the caches, for health."""
        own = (self._jobs, self._pods, self._nodes, self._priorities, self._profiles, *self._furniture.values())
        more = self._provisioning.watched if self._provisioning else ()
        found = chain.from_iterable(each.informers for each in (*own, *more))
        return (*found, *(self._kueue.informers if self._kueue else ()))

    async def run(self) -> None:
        """Keep the caches true and write events, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for informer in self.informers:
                tasks.create_task(informer.run())
            if self._kueue:
                tasks.create_task(self._kueue.run())
            tasks.create_task(self._recorder.run())

    async def wait_synced(self) -> None:
        """Wait until every cache has been filled once."""
        if self._kueue:
            await self._kueue.wait_synced()
        for informer in self.informers:
            await informer.synced.wait()

    # ---- reads

    def journal(self) -> Journal:
        """Begin to keep account of changes, for one reader."""
        return self._reactions.journal(
            named(kind, item) for kind, watched in self._journaled.items() for item in watched.objects()
        )

    def job(self, key: Key) -> Object | None:
        """Return the PipelineJob, or None."""
        return self._jobs.get(key.namespace, key.name)

    def jobs(self) -> Sequence[Object]:
        """Return all PipelineJobs."""
        return self._jobs.objects()

    def chains(self, key: Key) -> Sequence[Object]:
        """Return the PipelineJobs controlled by this job's uid."""
        job = self.job(key)
        found = self._reactions.chains_of(job["metadata"]["uid"]) if job else ()
        return tuple(chain for name in found if (chain := self._jobs.get(*name)) is not None)

    def pods(self, key: Key) -> Sequence[Object]:
        """Return the pods controlled by this job's uid."""
        job = self.job(key)
        found = self._reactions.pods_of(job["metadata"]["uid"]) if job else ()
        return tuple(pod for name in found if (pod := self._pods.get(*name)) is not None)

    def pod_by_name(self, namespace: str, name: str) -> Object | None:
        """Return the pod of this name, whoever owns it."""
        return self._pods.get(namespace, name)

    def furniture(self, key: Key) -> Sequence[Object]:
        """Return the job's config map, services and budget, without most of what they hold."""
        job, front = self.job(key), names.front_name(key.name)
        wanted = (
            ("ConfigMap", names.plan_name(key.name)),
            ("Service", names.service_name(key.name)),
            ("Service", front),
            (BUDGET, front),
        )
        found = (self._furniture[kind].get(key.namespace, name) for kind, name in wanted)
        owner = (key, job["metadata"]["uid"]) if job else None
        return tuple(item for item in found if item is not None and projection.owner(item) == owner)

    def all_pods(self) -> Sequence[Object]:
        """Return all pods that hold room on nodes, and all of ours."""
        return tuple(pod for pod in self._pods.objects() if projection.takes_capacity(pod) or projection.is_ours(pod))

    def nodes(self) -> Sequence[Object]:
        """Return all nodes."""
        return self._nodes.objects()

    def node(self, name: str) -> Object | None:
        """Return the node of this name."""
        return self._nodes.get("", name)

    def priority_classes(self) -> Sequence[Object]:
        """Return all PriorityClasses."""
        return self._priorities.objects()

    def topology_profiles(self) -> Sequence[Object]:
        """Return all TopologyProfiles; none where their CRD is not installed."""
        return self._profiles.objects()

    def kueue(self, key: Key) -> Kueue | None:
        """Return what Kueue says of this job; None where there is no Kueue, or this process was told of none."""
        job = self.job(key)
        return self._kueue.of(key, job["metadata"]["uid"]) if self._kueue and job else None

    def autoscaler(self, key: Key) -> Autoscaler | None:
        """Return what became of the job's request for nodes; None where this process was not told to ask."""
        job = self.job(key)
        return self._provisioning.of(key, job["metadata"]["uid"]) if self._provisioning and job else None

    async def look_up(self, kind: str, namespace: str, name: str) -> Object | None:
        """Read an object from the API server, whoever owns it, or None."""
        return await self._writes.look_up(kind, namespace, name)

    async def admitted(self, pod: Object) -> Object:
        """Return a new pod as it would be stored: a dry run, under a name of its own, for one of its own may stand."""
        metadata = {key: value for key, value in pod["metadata"].items() if key != "name"}
        body = {**pod, "metadata": {**metadata, "generateName": f"{pod['metadata']['name']}-"}}
        folder = self._path("Pod", metadata["namespace"], "").rstrip("/")
        query = {**MANAGER, "dryRun": "All"}
        return await self._writes.send("POST", folder, query=query, body=body)

    async def progress(self, pod: Object) -> Progress | None:
        """Ask a running trainer how far it is; None if it does not answer."""
        return await ask_progress(self._session, pod)

    async def tell(self, pod: Object, incarnation: Incarnation) -> None:
        """Tell a running trainer who meets next; one that does not take it will say that it still waits."""
        await tell_incarnation(self._session, pod, incarnation)

    async def tell_rank(self, pod: Object, rank: GivenRank) -> None:
        """Tell a spare whose place it takes; one that does not hear it will say that it is still a spare."""
        await tell_rank(self._session, pod, rank)

    async def pod_events(self, pod: Object) -> Sequence[Event]:
        """Return what was told of a pod of late, the newest last."""
        return await read_pod_events(self._api, pod)

    # ---- writes

    async def apply(self, item: Object) -> None:
        """Create an object without a uid; of one with a uid, that stands, bring the fields it states to what it states.

        Raises NameTakenError if another's stands under the name of a new one, UnavailableError if
        that is about to go, ConflictError if the one that is meant has gone, or stands already.
        """
        await self._writes.apply(item)

    async def change_pod(self, pod: Object, changes: Mapping[str, Any]) -> None:
        """Change these fields of a pod and no other; the uid guards a namesake made since.

        Raises ConflictError if that pod is gone.
        """
        metadata = pod["metadata"]
        body = {**changes, "metadata": {**changes.get("metadata", {}), "uid": metadata["uid"]}}
        await self._writes.patch("Pod", metadata, body, content_type=STRATEGIC)

    async def delete(self, reference: Reference) -> None:
        """Delete exactly this one; absent is done. Pods get their own grace period."""
        await self._writes.delete(reference)

    async def write_status(self, job: Object, status: Mapping[str, Any]) -> None:
        """Replace the job's status.

        Raises ConflictError if the job changed, or went, since `job` was read.
        """
        metadata = job["metadata"]
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {key: metadata[key] for key in ("namespace", "name", "uid", "resourceVersion")},
            "spec": job["spec"],
            "status": status,
        }
        path = self._path(names.KIND, metadata["namespace"], metadata["name"])
        try:
            answer = await self._writes.send("PUT", f"{path}/status", query=MANAGER, body=body)
        except NotFoundError as error:
            raise ConflictError(f"PipelineJob {metadata['namespace']}/{metadata['name']} is gone") from error
        self._jobs.offer(answer)

    async def patch_status(self, item: Object, status: Mapping[str, Any]) -> None:
        """Change fields of the status of another's object: a None takes a field away.

        Raises ConflictError if the object changed, or went, since `item` was read.
        """
        metadata = item["metadata"]
        path = self._path(item["kind"], metadata["namespace"], metadata["name"])
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": status}
        try:
            answer = await self._writes.send("PATCH", f"{path}/status", query=MANAGER, body=body, content_type=MERGE)
        except NotFoundError as error:
            raise ConflictError(f"{item['kind']} {metadata['namespace']}/{metadata['name']} is gone") from error
        self._take_up(item["kind"], answer)

    async def emit(self, job: Object, event: Event) -> None:
        """Record an event on the job; best effort, written in the background."""
        self._hooks.check_fence()
        self._recorder.record(job, event)

    def _take_up(self, kind: str, answer: dict[str, Any]) -> None:
        others = {
            "Pod": self._pods,
            names.KIND: self._jobs,
            WORKLOAD: self._kueue,
            **dict.fromkeys(PROVISIONING, self._provisioning),
        }
        cache = others.get(kind) or self._furniture.get(kind)
        if cache and answer.get("metadata", {}).get("uid"):
            cache.offer({"kind": kind, **answer})

    def _path(self, kind: str, namespace: str, name: str) -> str:
        if kind == WORKLOAD and self._kueue:
            return self._kueue.path(namespace, name)
        prefix, plural = _FOLDERS[kind]
        inside = f"/namespaces/{namespace}" if namespace else ""
        return f"{prefix}{inside}/{plural}/{name}"

    def _kueue_cache(self) -> KueueCache:
        return KueueCache(
            self._api,
            on_workload=self._reactions.on_workload,
            on_other=self._reactions.on_kueue,
            on_listed=self._hooks.resynced,
            on_restart=self._hooks.watch_restarted,
            timings=self._timings,
            namespaces=self._namespaces,
        )

    def _provisioning_cache(self) -> ProvisioningCache:
        changed = on_request(self._hooks.enqueue)
        return ProvisioningCache(
            requests=self._watched(
                PROVISIONING_KIND, changed, without_managed_fields, label=names.LABEL_JOB, is_optional=True
            ),
            templates=self._watched("PodTemplate", lambda _: None, without_managed_fields, label=names.LABEL_JOB),
        )

    def _watched(
        self,
        kind: str,
        on_change: Callable[[Change], None],
        project: Callable[[dict[str, Any]], dict[str, Any]],
        **how: Any,
    ) -> Watched:
        watch = Watch(
            api=self._api,
            namespaces=self._namespaces,
            timings=self._timings,
            on_listed=self._hooks.resynced,
            on_restart=self._hooks.watch_restarted,
        )
        return watch.of(kind, _FOLDERS[kind], on_change, project, **how)
