"""A Cluster that is Kubernetes: reads come from informers' caches, writes go to the API server.

Every write passes the fence first, and what the API server answers goes into the cache at once, so that the next pass
sees its own writes.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from pydantic import ValidationError

from pipelinejob import names
from pipelinejob.progress import Progress
from pipelinejob_operator.cluster import ConflictError, Event, Key, Kueue, Object, Reference
from pipelinejob_operator.kube import projection
from pipelinejob_operator.kube.api import APPLY, MERGE, Api, NotFoundError
from pipelinejob_operator.kube.informer import Change, Informer, Name, Timings, without_managed_fields
from pipelinejob_operator.kube.kueue import KueueCache, job_of
from pipelinejob_operator.kube.recorder import Recorder
from pipelinejob_operator.objects.workload import KIND as WORKLOAD

# A write must land before another operator can take the Lease (leader.py: it is held 5 s longer than it is trusted).
WRITE_TIMEOUT_S = 5.0
_PROGRESS_TIMEOUT_S = 2.0

_JOBS = f"/apis/{names.API_VERSION}"
_FOLDERS: Final = {
    "Pod": ("/api/v1", "pods"),
    "Service": ("/api/v1", "services"),
    "Node": ("/api/v1", "nodes"),
    "PriorityClass": ("/apis/scheduling.k8s.io/v1", "priorityclasses"),
    "ConfigMap": ("/api/v1", "configmaps"),
    names.KIND: (_JOBS, names.PLURAL),
    names.PROFILE_KIND: (_JOBS, names.PROFILE_PLURAL),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Whom the cluster tells what."""

    enqueue: Callable[[Key], None]  # this job deserves a pass
    resynced: Callable[[], None]  # a list was taken up, perhaps after a gap: all jobs deserve one
    watch_restarted: Callable[[str], None]  # the watch of this plural failed and begins again
    check_fence: Callable[[], None]  # raises ClusterError if this process may not write


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
        kueue: bool = False,
    ) -> None:
        """Prepare; `run` keeps the caches true. `session` is for the trainers' own ports, never for the API server.

        `kueue` says that there may be a Kueue, and that this process may read and write its objects.
        """
        self._api = api
        self._hooks = hooks
        self._session = session
        self._timings = timings or Timings()
        self._recorder = Recorder(api, instance=instance)
        self._pods_of: dict[str, set[Name]] = {}
        self._jobs = self._informer(names.KIND, self._on_job, without_managed_fields)
        self._pods = self._informer("Pod", self._on_pod, projection.pod)
        self._nodes = self._informer("Node", self._on_node, projection.node)
        self._priorities = self._informer("PriorityClass", self._on_priority, without_managed_fields)
        self._profiles = self._informer(names.PROFILE_KIND, self._on_profile, without_managed_fields, is_optional=True)
        self._furniture = {
            kind: self._informer(kind, self._on_furniture, projection.furniture, label=names.LABEL_JOB)
            for kind in ("ConfigMap", "Service")
        }
        self._kueue = self._kueue_cache() if kueue else None

    # ---- life

    @property
    def informers(self) -> tuple[Informer, ...]:
        """Give the caches, for health."""
        own = (self._jobs, self._pods, self._nodes, self._priorities, self._profiles, *self._furniture.values())
        return (*own, *self._kueue.informers) if self._kueue else own

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

    def job(self, key: Key) -> Object | None:
        """Give the PipelineJob, or None."""
        return self._jobs.get(key.namespace, key.name)

    def jobs(self) -> Sequence[Object]:
        """Give all PipelineJobs."""
        return self._jobs.objects()

    def pods(self, key: Key) -> Sequence[Object]:
        """Give the pods controlled by this job's uid."""
        job = self.job(key)
        found = sorted(self._pods_of.get(job["metadata"]["uid"], ())) if job else ()
        return tuple(pod for name in found if (pod := self._pods.get(*name)) is not None)

    def furniture(self, key: Key) -> Sequence[Object]:
        """Give the job's config map and service, without what they hold."""
        job = self.job(key)
        wanted = {"ConfigMap": names.plan_name(key.name), "Service": names.service_name(key.name)}
        found = (self._furniture[kind].get(key.namespace, name) for kind, name in wanted.items())
        owner = (key, job["metadata"]["uid"]) if job else None
        return tuple(item for item in found if item is not None and projection.owner(item) == owner)

    def all_pods(self) -> Sequence[Object]:
        """Give all pods that hold room on nodes, and all of ours."""
        return tuple(pod for pod in self._pods.objects() if projection.takes_capacity(pod) or projection.is_ours(pod))

    def nodes(self) -> Sequence[Object]:
        """Give all nodes."""
        return self._nodes.objects()

    def priority_classes(self) -> Sequence[Object]:
        """Give all PriorityClasses."""
        return self._priorities.objects()

    def topology_profiles(self) -> Sequence[Object]:
        """Give all TopologyProfiles; none where their CRD is not installed."""
        return self._profiles.objects()

    def kueue(self, key: Key) -> Kueue | None:
        """Give what Kueue says of this job; None where there is no Kueue, or this process was told of none."""
        job = self.job(key)
        return self._kueue.of(key, job["metadata"]["uid"]) if self._kueue and job else None

    async def config_map(self, namespace: str, name: str) -> Object | None:
        """Read a config map of a user's, or None."""
        try:
            return await self._api.request("GET", self._path("ConfigMap", namespace, name), timeout_s=WRITE_TIMEOUT_S)
        except NotFoundError:
            return None

    async def progress(self, pod: Object) -> Progress | None:
        """Ask a running trainer how far it is; None if it does not answer."""
        address = pod.get("status", {}).get("podIP")
        if not address:
            return None
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.get(
                f"http://{host}:{names.PORT_METRICS}/progress",
                timeout=aiohttp.ClientTimeout(total=_PROGRESS_TIMEOUT_S),
            ) as response:
                return Progress.model_validate_json(await response.read()) if response.ok else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError):
            return None

    # ---- writes

    async def apply(self, item: Object) -> None:
        """Create the object or bring the fields it states to what it states (server-side apply).

        Raises ConflictError for a pod whose namesake is still going.
        """
        metadata = item["metadata"]
        path = self._path(item["kind"], metadata["namespace"], metadata["name"])
        self._refuse_going_pod(item["kind"], self._pods.get(metadata["namespace"], metadata["name"]))
        answer = await self._write(
            "PATCH", path, query={"fieldManager": names.FIELD_MANAGER, "force": "true"}, body=item, content_type=APPLY
        )
        self._take_up(item["kind"], answer)
        self._refuse_going_pod(item["kind"], answer)

    async def delete(self, reference: Reference) -> None:
        """Delete; absent is done. Pods get their own grace period."""
        path = self._path(reference.kind, reference.namespace, reference.name)
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if reference.uid:
            options["preconditions"] = {"uid": reference.uid}
        try:
            answer = await self._write("DELETE", path, body=options)
        except NotFoundError:
            return
        except ConflictError:
            if reference.uid:  # the one that was meant is gone, a namesake stands there
                return
            raise
        if answer.get("metadata", {}).get("deletionTimestamp"):
            self._take_up(reference.kind, answer)

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
            answer = await self._write("PUT", f"{path}/status", query={"fieldManager": names.FIELD_MANAGER}, body=body)
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
        query = {"fieldManager": names.FIELD_MANAGER}
        try:
            answer = await self._write("PATCH", f"{path}/status", query=query, body=body, content_type=MERGE)
        except NotFoundError as error:
            raise ConflictError(f"{item['kind']} {metadata['namespace']}/{metadata['name']} is gone") from error
        self._take_up(item["kind"], answer)

    async def emit(self, job: Object, event: Event) -> None:
        """Record an event on the job; best effort, written in the background."""
        self._hooks.check_fence()
        self._recorder.record(job, event)

    async def _write(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        self._hooks.check_fence()
        return await self._api.request(method, path, timeout_s=WRITE_TIMEOUT_S, **request)

    def _take_up(self, kind: str, answer: dict[str, Any]) -> None:
        others = {"Pod": self._pods, WORKLOAD: self._kueue}
        cache = others.get(kind) or self._furniture.get(kind)
        if cache and answer.get("metadata", {}).get("uid"):
            cache.offer(answer)

    def _path(self, kind: str, namespace: str, name: str) -> str:
        if kind == WORKLOAD and self._kueue:
            return self._kueue.path(namespace, name)
        prefix, plural = _FOLDERS[kind]
        return f"{prefix}/namespaces/{namespace}/{plural}/{name}"

    @staticmethod
    def _refuse_going_pod(kind: str, pod: Object | None) -> None:
        if kind == "Pod" and pod and pod["metadata"].get("deletionTimestamp"):
            raise ConflictError(f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']} is still being deleted")

    # ---- what changes tell

    def _on_job(self, change: Change) -> None:
        item = change.new or change.old
        if item:
            self._hooks.enqueue(_key(item))
        for name in projection.asked(item) if item else ():
            self._hooks.enqueue(Key(*name.split("/")))
        # Those who wait, wait in a line: it moves when one leaves it.
        waited = change.old is not None and projection.waits_for_room(change.old)
        if waited and not (change.new and projection.waits_for_room(change.new)):
            self._enqueue_jobs(projection.waits_for_room)

    def _on_pod(self, change: Change) -> None:
        for item, index in ((change.old, set.discard), (change.new, set.add)):
            owned = projection.owner(item) if item else None
            if item and owned:
                key, uid = owned
                index(self._pods_of.setdefault(uid, set()), Name(key.namespace, item["metadata"]["name"]))
                if not self._pods_of[uid]:
                    del self._pods_of[uid]
                self._hooks.enqueue(key)
        held = change.old is not None and projection.takes_capacity(change.old)
        if held and not (change.new and projection.takes_capacity(change.new)):
            self._enqueue_jobs(projection.waits_for_room)

    def _on_furniture(self, change: Change) -> None:
        owned = projection.owner(change.old) if change.old and not change.new else None
        if owned:
            self._hooks.enqueue(owned[0])

    def _on_node(self, change: Change) -> None:
        if projection.matters(change.old, change.new):
            self._enqueue_jobs(lambda job: not projection.is_finished(job))

    def _on_profile(self, _: Change) -> None:
        self._enqueue_jobs(projection.waits_for_room)

    def _on_priority(self, change: Change) -> None:
        if projection.matters(change.old, change.new):
            self._enqueue_jobs(projection.waits_for_room)

    def _on_workload(self, change: Change) -> None:
        key = job_of(change)
        if key:
            self._hooks.enqueue(key)

    def _enqueue_jobs(self, wanted: Callable[[Object], bool]) -> None:
        for job in self._jobs.objects():
            if wanted(job):
                self._hooks.enqueue(_key(job))

    def _kueue_cache(self) -> KueueCache:
        return KueueCache(
            self._api,
            on_workload=self._on_workload,
            on_other=lambda _: self._enqueue_jobs(projection.waits_for_room),
            on_listed=self._hooks.resynced,
            on_restart=self._hooks.watch_restarted,
            timings=self._timings,
        )

    def _informer(
        self,
        kind: str,
        on_change: Callable[[Change], None],
        project: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        label: str | None = None,
        is_optional: bool = False,
    ) -> Informer:
        prefix, plural = _FOLDERS[kind]
        return Informer(
            self._api,
            f"{prefix}/{plural}",
            kind=kind,
            api_version=prefix.removeprefix("/apis/").removeprefix("/api/"),
            on_change=on_change,
            on_listed=self._hooks.resynced,
            on_restart=lambda: self._hooks.watch_restarted(plural),
            project=project,
            timings=self._timings,
            label=label,
            is_optional=is_optional,
        )


def _key(job: Object) -> Key:
    return Key(job["metadata"]["namespace"], job["metadata"]["name"])
