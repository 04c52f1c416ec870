"""A Cluster without Kubernetes: this machine's processes are the pods, its devices the one node.

The controller cannot tell the difference: a pod waits for its scheduling gate to be lifted, runs, ends with an exit
code and last words. The job and its status survive in the run's folder, as an API server would keep them.
"""

import asyncio
import contextlib
import copy
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from pydantic import ValidationError

from pipelinejob.base import names
from pipelinejob.contract.incarnation import Incarnation
from pipelinejob.contract.progress import ExitCode, Progress
from pipelinejob_operator.cluster import (
    Autoscaler,
    ClusterError,
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
from pipelinejob_operator.local import pod as local_pod
from pipelinejob_operator.local.machine import Machine
from pipelinejob_operator.local.pod import Surroundings
from pipelinejob_operator.local.runfolder import RunFolder
from pipelinejob_operator.local.spares import Spares
from pipelinejob_operator.local.stage_process import StageProcess
from pipelinejob_operator.objects.pod_template import merge
from pipelinejob_operator.objects.tokens import authorization

_GPU = "nvidia.com/gpu"
_PROGRESS_TIMEOUT_S = 1.0
_PROBE_PERIOD_S = 0.25
_MAX_MESSAGE_BYTES = 4096  # as the kubelet truncates a termination message
_FALLBACK_LOG_BYTES = 2048
_BACKOFF_S, _MOST_BACKOFF_S = 0.5, 30.0  # before a process begins again in its pod


@dataclass(slots=True)
class _Rank:
    """A pod and, once its gate is lifted, its process."""

    pod: dict[str, Any]
    process: StageProcess | None = None
    surroundings: Surroundings | None = None
    task: asyncio.Task[None] | None = None


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
        self._ranks: dict[Key, _Rank] = {}
        self._others: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._rendezvous: dict[tuple[str, str], str] = {}
        self._revision = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._is_ending = False
        self._num_spares = 0
        self._spares = Spares(environment=self._spare_environment(), log=folder.logs / "spares.log")

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PROGRESS_TIMEOUT_S))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ending = True
        self.kill_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session:
            await self._session.close()

    # What is read

    def job(self, key: Key) -> Object | None:
        """Return the PipelineJob, or None."""
        return self._jobs.get(key)

    def jobs(self) -> Sequence[Object]:
        """Return all PipelineJobs."""
        return tuple(self._jobs.values())

    def pods(self, key: Key) -> Sequence[Object]:
        """Return the pods controlled by this job's uid."""
        job = self._jobs.get(key)
        uid = job["metadata"]["uid"] if job else None
        return tuple(rank.pod for rank in self._ranks.values() if uid and _controller_uid(rank.pod) == uid)

    def furniture(self, key: Key) -> Sequence[Object]:
        """Return the job's config map and service."""
        job = self._jobs.get(key)
        uid = job["metadata"]["uid"] if job else None
        return [item for item in self._others.values() if uid and _controller_uid(item) == uid]

    def pod_by_name(self, namespace: str, name: str) -> Object | None:
        """Return the pod of this name."""
        rank = self._ranks.get(Key(namespace, name))
        return rank.pod if rank else None

    def all_pods(self) -> Sequence[Object]:
        """Return all pods; the machine's other processes are not counted."""
        return tuple(rank.pod for rank in self._ranks.values())

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
        body = await self._get(pod, names.PORT_METRICS, "/progress")
        if body is None:
            return None
        try:
            return Progress.model_validate_json(body)
        except ValidationError:  # not one of our trainers
            return None

    async def tell(self, pod: Object, incarnation: Incarnation) -> None:
        """Tell the pod's process who meets next; one that does not take it will say that it still waits."""
        url = self._url(pod, names.PORT_METRICS, "/incarnation")
        if url is not None and self._session is not None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                body = incarnation.model_dump_json(by_alias=True)
                async with self._session.post(url, data=body, headers=authorization(pod)) as response:
                    await response.read()

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
        rank = self._ranks.get(Key(metadata["namespace"], metadata["name"]))
        if rank is None or rank.pod["metadata"]["uid"] != metadata["uid"]:
            raise ConflictError(f"pod {metadata['namespace']}/{metadata['name']} is gone")
        await self._apply_pod(merge(rank.pod, changes))

    async def delete(self, reference: Reference) -> None:
        """Delete the object; a pod's process gets its grace period."""
        key = Key(reference.namespace, reference.name)
        if reference.kind == "Pod":
            rank = self._ranks.get(key)
            if rank and reference.uid == rank.pod["metadata"]["uid"]:
                self._stop(key, rank, grace_s=reference.grace_s)
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
        self._folder.write_job(written)
        self._on_change()

    async def patch_status(self, item: Object, status: Mapping[str, Any]) -> None:
        """Refuse: there is nobody else's object here."""
        raise InvalidError(f"there is no {item['kind']} without a cluster: {sorted(status)}")

    async def emit(self, job: Object, event: Event) -> None:
        """Hand the event to whoever watches the run."""
        del job
        self._on_event(event)

    # The rest of a machine's life

    def kill_all(self) -> None:
        """End every process at once."""
        self._spares.kill()
        for rank in self._ranks.values():
            if rank.process:
                rank.process.kill()

    def checkpoints(self, key: Key) -> Path:
        """Return the folder that the job's stages save to."""
        for rank in self._ranks.values():
            if rank.surroundings and rank.pod["metadata"]["labels"].get(names.LABEL_JOB) == key.name:
                return Path(local_pod.environment(rank.pod, rank.surroundings)[names.ENV_CHECKPOINTS])
        return self._folder.checkpoints

    def _apply_job(self, stated: dict[str, Any]) -> None:
        key = Key(stated["metadata"]["namespace"], stated["metadata"]["name"])
        current = self._jobs.get(key)
        job = self._with_identity(_without_queue(stated), current)
        if current and current["spec"] != job["spec"]:
            job["metadata"]["generation"] = current["metadata"]["generation"] + 1
        self._jobs[key] = job
        self._folder.write_job(job)
        recovery = job["spec"].get("recovery") or {}
        self._num_spares = recovery.get("spares", 0) if recovery.get("inPlace") else 0
        self._on_change()

    async def _apply_pod(self, stated: dict[str, Any]) -> None:
        key = Key(stated["metadata"]["namespace"], stated["metadata"]["name"])
        rank = self._ranks.get(key)
        if rank is None:
            local_pod.check(stated)
            self._check_config_maps(stated)
            rank = self._ranks[key] = _Rank(pod=self._with_identity(stated, None))
            rank.pod["status"] = {"phase": "Pending", "conditions": _conditions(scheduled=False, ready=False)}
        elif rank.pod["metadata"].get("deletionTimestamp") is None:
            rank.pod = self._with_identity(stated, rank.pod)
            if rank.process is not None:
                self._write_own_fields(rank.pod)
        else:
            raise ConflictError(f"pod {key} is being deleted")
        if not local_pod.is_gated(rank.pod) and rank.process is None and rank.pod["status"]["phase"] == "Pending":
            await self._start(rank)
        self._on_change()

    def _with_identity(self, stated: dict[str, Any], current: dict[str, Any] | None) -> dict[str, Any]:
        metadata = stated["metadata"]
        kept = current["metadata"] if current else {}
        metadata["uid"] = kept.get("uid") or metadata.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = kept.get("creationTimestamp") or metadata.get("creationTimestamp") or _now()
        metadata["generation"] = kept.get("generation") or metadata.get("generation") or 1
        metadata["resourceVersion"] = self._next_revision()
        if current and "status" in current:
            stated["status"] = current["status"]
        return stated

    def _next_revision(self) -> str:
        self._revision += 1
        return str(self._revision)

    # A pod's life

    async def _start(self, rank: _Rank) -> None:
        pod = rank.pod
        try:
            surroundings = rank.surroundings or self._surroundings(pod)
            rank.surroundings = surroundings
            self._write_mounted_files(pod)
            surroundings.termination_log.parent.mkdir(parents=True, exist_ok=True)
            surroundings.termination_log.unlink(missing_ok=True)
            rank.process = await self._process_of(pod, surroundings)
        except OSError as error:
            raise InvalidError(f"pod {pod['metadata']['name']} cannot start: {error}") from error
        pod["spec"]["nodeName"] = self._machine.hostname
        self._set_status(rank, phase="Running", state={"running": {"startedAt": _now()}}, ready=False)
        rank.task = asyncio.create_task(self._watch(rank, rank.process))
        self._tasks.add(rank.task)
        rank.task.add_done_callback(self._tasks.discard)

    async def _process_of(self, pod: Object, surroundings: Surroundings) -> StageProcess:
        """Return the pod's process: a warm one that takes a lost one's place, or a new one."""
        command = local_pod.command(pod, surroundings)
        environment = local_pod.environment(pod, surroundings)
        folder = local_pod.trainer(pod).get("workingDir")
        if folder is None and self._is_in_place_of_another(pod):
            spare = self._spares.take(command, environment=environment, log=self._log(pod))
            if spare is not None:
                return spare
        return await StageProcess.start(command, environment=environment, log=self._log(pod), folder=folder)

    def _is_in_place_of_another(self, pod: Object) -> bool:
        """Tell whether the pod's attempt had a process under this name already."""
        return self._log(pod).exists()

    def _spare_environment(self) -> dict[str, str]:
        return {**self._machine.environment, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}

    async def _watch(self, rank: _Rank, process: StageProcess) -> None:
        probing = asyncio.create_task(self._probe(rank))
        try:
            code = await process.wait()
        finally:
            probing.cancel()
            process.kill()
        if self._begins_again(rank, code) and await self._begun_again(rank, code):
            return
        terminated = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "message": self._last_words(rank.pod, code),
            "finishedAt": _now(),
        }
        phase = "Succeeded" if code == 0 else "Failed"
        self._set_status(rank, phase=phase, state={"terminated": terminated}, ready=False)
        key = Key(rank.pod["metadata"]["namespace"], rank.pod["metadata"]["name"])
        if rank.pod["metadata"].get("deletionTimestamp") and self._ranks.get(key) is rank:
            del self._ranks[key]
        self._on_change()

    def _begins_again(self, rank: _Rank, code: int) -> bool:
        """Tell whether a process begins again in its pod, as a kubelet has it; not for what would end the same."""
        is_wanted = rank.pod["spec"].get("restartPolicy") == "Always" and code != ExitCode.USER_ERROR
        return is_wanted and not rank.pod["metadata"].get("deletionTimestamp") and not self._is_ending

    async def _begun_again(self, rank: _Rank, code: int) -> bool:
        """Start a pod's process again after a pause; return False if the pod is to end meanwhile."""
        status = rank.pod["status"]["containerStatuses"][0]
        wait_s = min(_MOST_BACKOFF_S, _BACKOFF_S * 2 ** status["restartCount"])
        last = {"terminated": {"exitCode": code, "message": self._last_words(rank.pod, code), "finishedAt": _now()}}
        waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
        self._set_status(rank, phase="Running", state=waiting, ready=False, last=last)
        self._on_change()
        await asyncio.sleep(wait_s)
        if not self._begins_again(rank, code):
            return False
        await self._start(rank)
        self._on_change()
        return True

    async def _probe(self, rank: _Rank) -> None:
        """Find out when the pod is ready, as its readiness probe says; a pod without one is ready at once."""
        probe = (local_pod.trainer(rank.pod).get("readinessProbe") or {}).get("httpGet")
        # Another process's state can only be polled.
        while probe and await self._get(rank.pod, _port(probe["port"], rank.pod), probe["path"]) is None:  # noqa: ASYNC110
            await asyncio.sleep(_PROBE_PERIOD_S)
        state = rank.pod["status"]["containerStatuses"][0]["state"]
        self._set_status(rank, phase="Running", state=state, ready=True)
        self._spares.keep(self._num_spares)
        self._on_change()

    def _stop(self, key: Key, rank: _Rank, *, grace_s: int | None = None) -> None:
        if rank.process is None or rank.task is None or rank.task.done():
            del self._ranks[key]
            return
        if rank.pod["metadata"].get("deletionTimestamp"):
            return
        grace = local_pod.grace_s(rank.pod) if grace_s is None else grace_s
        # The old value may be in a reader's hands: never change it in place.
        rank.pod = {**rank.pod, "metadata": {**rank.pod["metadata"], "deletionTimestamp": _now()}}
        rank.process.terminate()
        asyncio.get_running_loop().call_later(grace, _kill_if_running, rank)

    def _set_status(
        self, rank: _Rank, *, phase: str, state: dict[str, Any], ready: bool, last: dict[str, Any] | None = None
    ) -> None:
        """Set a pod's status; `last` is how its process ended that begins again."""
        started = rank.pod["status"].get("startTime") or _now()
        before = (rank.pod["status"].get("containerStatuses") or [{}])[0]
        rank.pod = {
            **rank.pod,
            "metadata": {**rank.pod["metadata"], "resourceVersion": self._next_revision()},
            "status": {
                "phase": phase,
                "startTime": started,
                "podIP": "127.0.0.1",
                "hostIP": "127.0.0.1",
                "conditions": _conditions(scheduled=True, ready=ready),
                "containerStatuses": [
                    {
                        "name": names.CONTAINER_TRAINER,
                        "ready": ready,
                        "started": "running" in state,
                        "restartCount": before.get("restartCount", 0) + (last is not None),
                        "state": state,
                        "lastState": last or before.get("lastState", {}),
                    }
                ],
            },
        }

    def _last_words(self, pod: Object, code: int) -> str:
        file = self._termination_log(pod)
        words = file.read_text(errors="replace")[-_MAX_MESSAGE_BYTES:] if file.exists() else ""
        if words or code == 0:
            return words
        return self._log(pod).read_bytes()[-_FALLBACK_LOG_BYTES:].decode(errors="replace").strip()

    # What the machine lends

    def _surroundings(self, pod: Object) -> Surroundings:
        return Surroundings(
            mounts=self._mounts(pod),
            ports={port: local_pod.free_port() for port in local_pod.container_ports(pod)},
            rendezvous=self._rendezvous_of(pod),
            output=self._folder.root.resolve(),
            termination_log=self._termination_log(pod),
            inherited=self._machine.environment,
            threads=self._machine.threads(self._live()),
            gpus=self._lend_gpus(local_pod.requested(pod, _GPU)),
        )

    def _live(self) -> int:
        return sum(rank.pod["status"]["phase"] in {"Pending", "Running"} for rank in self._ranks.values())

    def _lend_gpus(self, count: int) -> tuple[str, ...]:
        lent = {
            gpu
            for rank in self._ranks.values()
            if rank.surroundings and rank.task and not rank.task.done()
            for gpu in rank.surroundings.gpus
        }
        free = [gpu for gpu in self._machine.gpus if gpu not in lent]
        if len(free) < count:
            raise ClusterError(f"{count} GPUs are wanted, {len(free)} of {len(self._machine.gpus)} are free")
        return tuple(free[:count])

    def _rendezvous_of(self, pod: Object) -> str:
        gang = (pod["metadata"].get("labels", {}).get(names.LABEL_JOB, ""), local_pod.attempt(pod))
        if gang not in self._rendezvous:
            self._rendezvous[gang] = f"127.0.0.1:{local_pod.free_port()}"
        return self._rendezvous[gang]

    def _mounts(self, pod: Object) -> dict[str, Path]:
        root = self._folder.root.resolve()
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        mounts: dict[str, Path] = {}
        for mount in local_pod.trainer(pod).get("volumeMounts", ()):
            volume = volumes.get(mount["name"], {})
            if "hostPath" in volume:
                mounts[mount["mountPath"]] = Path(volume["hostPath"]["path"])
            elif "configMap" in volume:
                mounts[mount["mountPath"]] = self._config_folder(pod, volume["configMap"]["name"])
            elif "downwardAPI" in volume:
                mounts[mount["mountPath"]] = self._own_folder(pod, mount["name"])
            elif "emptyDir" in volume and Path(mount["mountPath"]).is_dir():
                continue  # /tmp, /dev/shm: this machine has its own
                mounts[mount["mountPath"]] = root / "volumes" / mount["name"]
        mounts[names.CHECKPOINT_MOUNT] = self._folder.checkpoints.resolve()
        return mounts

    def _config_folder(self, pod: Object, name: str) -> Path:
        root = self._folder.root.resolve()
        # The plan is what a person looks for, so it lies at the top.
        is_plan = name == names.plan_name(pod["metadata"].get("labels", {}).get(names.LABEL_JOB, ""))
        return root if is_plan else root / "volumes" / name

    def _own_folder(self, pod: Object, volume: str) -> Path:
        return self._folder.root.resolve() / "volumes" / str(pod["metadata"]["name"]) / volume

    def _check_config_maps(self, pod: Object) -> None:
        for volume in pod["spec"].get("volumes", ()):
            name = volume.get("configMap", {}).get("name")
            if name and ("ConfigMap", pod["metadata"]["namespace"], name) not in self._others:
                raise InvalidError(f"volume {volume['name']}: there is no config map {name} without a cluster")

    def _write_mounted_files(self, pod: Object) -> None:
        for volume in pod["spec"].get("volumes", ()):
            if "configMap" not in volume:
                continue
            name = volume["configMap"]["name"]
            config = self._others[("ConfigMap", pod["metadata"]["namespace"], name)]
            folder = self._config_folder(pod, name)
            folder.mkdir(parents=True, exist_ok=True)
            for file, content in config.get("data", {}).items():
                self._folder.write(folder / file, content)
        self._write_own_fields(pod)
        for folder in self._mounts(pod).values():
            folder.mkdir(parents=True, exist_ok=True)

    def _write_own_fields(self, pod: Object) -> None:
        for volume in pod["spec"].get("volumes", ()):
            if "downwardAPI" in volume:
                folder = self._own_folder(pod, volume["name"])
                folder.mkdir(parents=True, exist_ok=True)
                for file, content in local_pod.field_files(pod, volume).items():
                    self._folder.write(folder / file, content)

    def _log(self, pod: Object) -> Path:
        return self._folder.logs / f"{pod['metadata']['name']}.{local_pod.attempt(pod)}.log"

    def _termination_log(self, pod: Object) -> Path:
        name = f"{pod['metadata']['name']}.{local_pod.attempt(pod)}.termination.json"
        return self._folder.logs.resolve() / name

    async def _get(self, pod: Object, port: int, path: str) -> bytes | None:
        url = self._url(pod, port, path)
        if url is None or self._session is None:
            return None
        try:
            async with self._session.get(url) as response:
                return await response.read() if response.ok else None
        except (aiohttp.ClientError, TimeoutError):  # not up yet, or gone
            return None

    def _url(self, pod: Object, port: int, path: str) -> str | None:
        rank = self._ranks.get(Key(pod["metadata"]["namespace"], pod["metadata"]["name"]))
        if rank is None or rank.surroundings is None:
            return None
        return f"http://127.0.0.1:{rank.surroundings.ports.get(port, port)}{path}"


def _without_queue(job: dict[str, Any]) -> dict[str, Any]:
    labels = {key: value for key, value in (job["metadata"].get("labels") or {}).items() if key != names.LABEL_QUEUE}
    return {**job, "metadata": {**job["metadata"], "labels": labels}}


def _kill_if_running(rank: _Rank) -> None:
    if rank.process and rank.task and not rank.task.done():
        rank.process.kill()


def _controller_uid(item: Object) -> str | None:
    for owner in item["metadata"].get("ownerReferences", ()):
        if owner.get("controller"):
            return str(owner["uid"])
    return None


def _conditions(*, scheduled: bool, ready: bool) -> list[dict[str, str]]:
    facts = {"PodScheduled": scheduled, "Ready": ready, "ContainersReady": ready}
    return [{"type": name, "status": "True" if fact else "False"} for name, fact in facts.items()]


def _port(port: int | str, pod: Object) -> int:
    if isinstance(port, int):
        return port
    for declared in local_pod.trainer(pod).get("ports", ()):
        if declared.get("name") == port:
            return int(declared["containerPort"])
    return names.PORT_METRICS


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
