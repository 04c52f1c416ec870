"""A Cluster without Kubernetes: this machine's processes are the pods, its devices the one node.

The controller cannot tell the difference: a pod waits for its scheduling gate to be lifted, runs,
ends with an exit code and last words. The job and its status survive in the run's folder, as an
API server would keep them.
"""

import copy
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from pipelinejob.base import names
from pipelinejob.contract.incarnation import GivenRank, Incarnation
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import Progress
from pipelinejob_operator.cluster import (
    Autoscaler,
    ConflictError,
    Event,
    InvalidError,
    Journal,
    Key,
    Kueue,
    Object,
    Reference,
    WholeJournal,
)
from pipelinejob_operator.local.node import pod as local_pod
from pipelinejob_operator.local.node.folders import PodFolders
from pipelinejob_operator.local.node.kubelet import Kubelet, LocalPod, conditions, now
from pipelinejob_operator.local.node.machine import Machine
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.objects.making.pod_template import merge
from pipelinejob_operator.objects.making.tokens import authorization


class LocalCluster:
    """The Cluster protocol over this machine. Use as an async context manager: no process outlives it.

    `on_change` is called after every change that a controller should look at.
    """

    def __init__(
        self,
        folder: RunFolder,
        machine: Machine,
        *,
        on_change: Callable[[], None] = lambda: None,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._machine = machine
        self._on_change = on_change
        self._on_event = on_event
        self._jobs: dict[Key, dict[str, Any]] = {}
        self._others: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._revision = 0
        self._folders = PodFolders(folder, self._others)
        self._kubelet = Kubelet(
            machine,
            self._folders,
            spares_log=folder.logs / "spares.log",
            on_change=on_change,
            next_revision=self._next_revision,
        )

    async def __aenter__(self) -> Self:
        await self._kubelet.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._kubelet.__aexit__(kind, error, trace)

    # What is read

    def job(self, key: Key) -> Object | None:
        """Return the PipelineJob, or None."""
        return self._jobs.get(key)

    def jobs(self) -> Sequence[Object]:
        """Return all PipelineJobs."""
        return tuple(self._jobs.values())

    def chains(self, key: Key) -> Sequence[Object]:
        """Return the PipelineJobs controlled by this job's uid."""
        job = self._jobs.get(key)
        uid = job["metadata"]["uid"] if job else None
        return tuple(each for each in self._jobs.values() if uid and _controller_uid(each) == uid)

    def pods(self, key: Key) -> Sequence[Object]:
        """Return the pods controlled by this job's uid."""
        job = self._jobs.get(key)
        uid = job["metadata"]["uid"] if job else None
        return tuple(rank.pod for rank in self._kubelet.pods.values() if uid and _controller_uid(rank.pod) == uid)

    def furniture(self, key: Key) -> Sequence[Object]:
        """Return the job's config map, services and budget."""
        job = self._jobs.get(key)
        uid = job["metadata"]["uid"] if job else None
        return [item for item in self._others.values() if uid and _controller_uid(item) == uid]

    def plan(self, key: Key) -> Plan | None:
        """Return the plan that the job's stages run by; None before there is one."""
        texts = (item["data"][names.PLAN_FILE] for item in self.furniture(key) if item["kind"] == "ConfigMap")
        text = next(texts, None)
        return None if text is None else Plan.from_json(text)

    def pod_by_name(self, namespace: str, name: str) -> Object | None:
        """Return the pod of this name."""
        rank = self._kubelet.pods.get(Key(namespace, name))
        return rank.pod if rank else None

    def all_pods(self) -> Sequence[Object]:
        """Return all pods; the machine's other processes are not counted."""
        return tuple(rank.pod for rank in self._kubelet.pods.values())

    def nodes(self) -> Sequence[Object]:
        """Return this machine."""
        return (self._machine.node(),)

    def node(self, name: str) -> Object | None:
        """Return this machine, by its name."""
        return next((node for node in self.nodes() if node["metadata"]["name"] == name), None)

    def journal(self) -> Journal:
        """Begin to keep account of changes, for one reader."""
        return WholeJournal(self)

    def priority_classes(self) -> Sequence[Object]:
        """Return those that the jobs name: alone on this machine, they stand alike."""
        named = {job["spec"].get("scheduling", {}).get("priorityClassName") for job in self._jobs.values()}
        return [{"metadata": {"name": name}, "value": 0} for name in sorted(filter(None, named))]

    def topology_profiles(self) -> Sequence[Object]:
        """Return none: one machine has no network."""
        return ()

    def kueue(self, key: Key) -> Kueue | None:
        """Return None: a machine has no queues, and jobs wait for none."""
        del key
        return None

    def autoscaler(self, key: Key) -> Autoscaler | None:
        """Return None: a machine does not grow."""
        del key
        return None

    async def look_up(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return nothing: nobody else has objects here; measured costs come with the command, volumes are folders."""
        del kind, namespace, name
        return None

    async def admitted(self, pod: Object) -> Object:
        """Return the pod as it is: nobody changes it on its way in."""
        return pod

    async def pod_events(self, pod: Object) -> Sequence[Event]:
        """Return none: a process starts, or says itself why not."""
        del pod
        return ()

    async def progress(self, pod: Object) -> Progress | None:
        """Ask the pod's process how far it is."""
        body = await self._kubelet.get(pod, names.PORT_METRICS, "/progress")
        if body is None:
            return None
        try:
            return Progress.model_validate_json(body)
        except ValidationError:  # not one of our trainers
            return None

    async def tell(self, pod: Object, incarnation: Incarnation) -> None:
        """Tell the pod's process who meets next; one that does not take it will say that it still waits."""
        body = incarnation.model_dump_json(by_alias=True)
        await self._kubelet.post(pod, names.PORT_METRICS, "/incarnation", body, headers=authorization(pod))

    async def tell_rank(self, pod: Object, rank: GivenRank) -> None:
        """Tell a spare's process whose place it takes."""
        body = rank.model_dump_json(by_alias=True)
        await self._kubelet.post(pod, names.PORT_METRICS, "/rank", body, headers=authorization(pod))

    # What is written

    async def apply(self, item: Object) -> None:
        """Create the object, or bring the fields it states to what it states."""
        stated = copy.deepcopy(dict(item))
        if stated["kind"] == names.KIND:
            self._apply_job(stated)
        elif stated["kind"] == "Pod":
            await self._apply_pod(stated)
        else:
            identity = (stated["kind"], stated["metadata"].get("namespace", ""), stated["metadata"]["name"])
            self._others[identity] = self._with_identity(stated, self._others.get(identity))

    async def change_pod(self, pod: Object, changes: Mapping[str, Any]) -> None:
        """Change these fields of a pod and no other.

        Raises ConflictError if that pod is gone.
        """
        metadata = pod["metadata"]
        rank = self._kubelet.pods.get(Key(metadata["namespace"], metadata["name"]))
        if rank is None or rank.pod["metadata"]["uid"] != metadata["uid"]:
            raise ConflictError(f"pod {metadata['namespace']}/{metadata['name']} is gone")
        await self._apply_pod(merge(rank.pod, changes))

    async def delete(self, reference: Reference) -> None:
        """Delete the object; a pod's process gets its grace period."""
        key = Key(reference.namespace, reference.name)
        if reference.kind == "Pod":
            rank = self._kubelet.pods.get(key)
            if rank and reference.uid == rank.pod["metadata"]["uid"]:
                self._kubelet.stop(key, rank, grace_s=reference.grace_s)
        elif reference.kind == names.KIND:
            self._jobs.pop(key, None)
        else:
            self._others.pop((reference.kind, reference.namespace, reference.name), None)
        self._on_change()

    async def write_status(self, job: Object, status: Mapping[str, Any]) -> None:
        """Replace the job's status, and remember it in the run's folder.

        Raises ConflictError if the job changed since it was read.
        """
        key = Key(job["metadata"]["namespace"], job["metadata"]["name"])
        current = self._jobs.get(key)
        if current is None or current["metadata"]["resourceVersion"] != job["metadata"]["resourceVersion"]:
            raise ConflictError(f"{key} changed since it was read")
        written = {**current, "status": copy.deepcopy(dict(status))}
        written["metadata"] = {**current["metadata"], "resourceVersion": self._next_revision()}
        self._jobs[key] = written
        self._remember(written)
        self._on_change()

    async def patch_status(self, item: Object, status: Mapping[str, Any]) -> None:
        """Refuse: there is nobody else's object here."""
        raise InvalidError(f"there is no {item['kind']} without a cluster: {sorted(status)}")

    async def emit(self, job: Object, event: Event) -> None:
        """Hand the event to whoever watches the run."""
        del job
        self._on_event(event)

    def fronts(self) -> Sequence[int]:
        """Return the ports of this machine at which chains answer now."""
        return self._kubelet.fronts()

    def kill_all(self) -> None:
        """End every process at once."""
        self._kubelet.kill_all()

    def checkpoints(self, key: Key) -> Path:
        """Return the folder that the job's stages save to."""
        for rank in self._kubelet.pods.values():
            if rank.surroundings and rank.pod["metadata"]["labels"].get(names.LABEL_JOB) == key.name:
                return Path(local_pod.environment(rank.pod, rank.surroundings)[names.ENV_CHECKPOINTS])
        return self._folder.checkpoints

    def _apply_job(self, stated: dict[str, Any]) -> None:
        key = Key(stated["metadata"]["namespace"], stated["metadata"]["name"])
        current = self._jobs.get(key)
        if current is not None:
            stated["metadata"] = {**current["metadata"], **stated["metadata"]}
        job = self._with_identity(_without_queue(stated), current)
        if current and current["spec"] != job["spec"]:
            job["metadata"]["generation"] = current["metadata"]["generation"] + 1
        self._jobs[key] = job
        self._remember(job)
        recovery = job["spec"].get("recovery") or {}
        self._kubelet.num_spares = recovery.get("spares", 0) if recovery.get("inPlace") else 0
        self._on_change()

    def _remember(self, job: Mapping[str, Any]) -> None:
        """Keep the job that the run is of; its chains are found again by what it asks for."""
        if _controller_uid(job) is None:
            self._folder.write_job(job)

    async def _apply_pod(self, stated: dict[str, Any]) -> None:
        key = Key(stated["metadata"]["namespace"], stated["metadata"]["name"])
        rank = self._kubelet.pods.get(key)
        if rank is None:
            local_pod.check(stated)
            self._folders.check_config_maps(stated)
            rank = self._kubelet.pods[key] = LocalPod(pod=self._with_identity(stated, None))
            rank.pod["status"] = {"phase": "Pending", "conditions": conditions(scheduled=False, ready=False)}
        elif rank.pod["metadata"].get("deletionTimestamp") is None:
            rank.pod = self._with_identity(stated, rank.pod)
            if rank.process is not None:
                self._folders.write_own_fields(rank.pod)
        else:
            raise ConflictError(f"pod {key} is being deleted")
        if not local_pod.is_gated(rank.pod) and rank.process is None and rank.pod["status"]["phase"] == "Pending":
            await self._kubelet.start(rank)
        self._on_change()

    def _with_identity(self, stated: dict[str, Any], current: dict[str, Any] | None) -> dict[str, Any]:
        metadata = stated["metadata"]
        kept = current["metadata"] if current else {}
        metadata["uid"] = kept.get("uid") or metadata.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = kept.get("creationTimestamp") or metadata.get("creationTimestamp") or now()
        metadata["generation"] = kept.get("generation") or metadata.get("generation") or 1
        metadata["resourceVersion"] = self._next_revision()
        if current and "status" in current:
            stated["status"] = current["status"]
        return stated

    def _next_revision(self) -> str:
        self._revision += 1
        return str(self._revision)


def _without_queue(job: dict[str, Any]) -> dict[str, Any]:
    labels = {key: value for key, value in (job["metadata"].get("labels") or {}).items() if key != names.LABEL_QUEUE}
    return {**job, "metadata": {**job["metadata"], "labels": labels}}


def _controller_uid(item: Object) -> str | None:
    for owner in item["metadata"].get("ownerReferences", ()):
        if owner.get("controller"):
            return str(owner["uid"])
    return None
