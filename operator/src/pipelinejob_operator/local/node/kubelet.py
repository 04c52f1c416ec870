"""What a kubelet does, on this machine: it starts the processes of pods, watches and probes them, and stops them."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from pipelinejob.base import names
from pipelinejob.contract.progress import ExitCode
from pipelinejob_operator.cluster import ClusterError, InvalidError, Key, Object
from pipelinejob_operator.local.node import pod as local_pod
from pipelinejob_operator.local.node.folders import PodFolders
from pipelinejob_operator.local.node.machine import Machine
from pipelinejob_operator.local.node.pod import Surroundings
from pipelinejob_operator.local.node.spares import Spares
from pipelinejob_operator.local.node.stage_process import StageProcess

_GPU = "nvidia.com/gpu"
_ANSWER_TIMEOUT_S = 1.0
_PROBE_PERIOD_S = 0.25
_PROBE_AGAIN_S = 1.0  # of a stage that serves: it is ready now, and then not, as its chain is whole or not
_BACKOFF_S, _MOST_BACKOFF_S = 0.5, 30.0  # before a process begins again in its pod
_WELL_S = 2 * _MOST_BACKOFF_S  # it ran for so long that its next end is counted anew, as kubelets have it


@dataclass(slots=True)
class LocalPod:
    """A pod and, once its gate is lifted, its process."""

    pod: dict[str, Any]
    process: StageProcess | None = None
    surroundings: Surroundings | None = None
    task: asyncio.Task[None] | None = None
    ends: int = 0  # of its process, since one was well


def ends_before(ends: int, *, ran_s: float) -> int:
    """Return how many ends in a row there were before this one, of a process that ran for so long."""
    return 0 if ran_s >= _WELL_S else ends


def pause_s(ends: int) -> float:
    """Return the seconds before a process begins again that has ended so often in a row before."""
    return min(_MOST_BACKOFF_S, _BACKOFF_S * 2.0 ** min(ends, 20))


class Kubelet:
    """The pods of this machine, by namespace and name. Use as an async context manager: no process outlives it.

    `on_change` is called when a pod's status changed, `next_revision` gives the version of what is
    changed.
    """

    def __init__(
        self,
        machine: Machine,
        folders: PodFolders,
        *,
        spares_log: Path,
        on_change: Callable[[], None],
        next_revision: Callable[[], str],
    ) -> None:
        self.pods: dict[Key, LocalPod] = {}
        self.num_spares = 0  # warm processes to be kept, once a stage is up
        self._machine = machine
        self._folders = folders
        self._on_change = on_change
        self._next_revision = next_revision
        self._rendezvous: dict[tuple[str, str], str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._is_ending = False
        self._spares = Spares(environment=self._spare_environment(), log=spares_log)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ending = True
        self.kill_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session:
            await self._session.close()

    def kill_all(self) -> None:
        """End every process at once."""
        self._spares.kill()
        for rank in self.pods.values():
            if rank.process:
                rank.process.kill()

    async def start(self, rank: LocalPod) -> None:
        """Start a pod's process. Raises InvalidError if that is impossible, ClusterError if GPUs are lent to others."""
        pod = rank.pod
        try:
            surroundings = rank.surroundings or self._surroundings(pod)
            rank.surroundings = surroundings
            self._folders.write_mounted_files(pod)
            surroundings.termination_log.parent.mkdir(parents=True, exist_ok=True)
            surroundings.termination_log.unlink(missing_ok=True)
            rank.process = await self._process_of(pod, surroundings)
        except OSError as error:
            raise InvalidError(f"pod {pod['metadata']['name']} cannot start: {error}") from error
        pod["spec"]["nodeName"] = self._machine.hostname
        self._set_status(rank, phase="Running", state={"running": {"startedAt": now()}}, ready=False)
        rank.task = asyncio.create_task(self._watch(rank, rank.process))
        self._tasks.add(rank.task)
        rank.task.add_done_callback(self._tasks.discard)

    def stop(self, key: Key, rank: LocalPod, *, grace_s: int | None = None) -> None:
        """Delete a pod; its process gets `grace_s`, by default the pod's own."""
        if rank.process is None or rank.task is None or rank.task.done():
            del self.pods[key]
            return
        if rank.pod["metadata"].get("deletionTimestamp"):
            return
        grace = local_pod.grace_s(rank.pod) if grace_s is None else grace_s
        # The old value may be in a reader's hands: never change it in place.
        rank.pod = {**rank.pod, "metadata": {**rank.pod["metadata"], "deletionTimestamp": now()}}
        rank.process.terminate()
        asyncio.get_running_loop().call_later(grace, _kill_if_running, rank)

    async def get(self, pod: Object, port: int, path: str) -> bytes | None:
        """Return what the pod's process answers; None if it does not."""
        url = self._url(pod, port, path)
        if url is None or self._session is None:
            return None
        try:
            async with self._session.get(url) as response:
                return await response.read() if response.ok else None
        except (aiohttp.ClientError, TimeoutError):  # not up yet, or gone
            return None

    async def post(self, pod: Object, port: int, path: str, body: str, *, headers: Mapping[str, str]) -> None:
        """Tell the pod's process something; whether it took it shows in its progress."""
        url = self._url(pod, port, path)
        if url is not None and self._session is not None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.post(url, data=body, headers=headers) as response:
                    await response.read()

    async def _process_of(self, pod: Object, surroundings: Surroundings) -> StageProcess:
        """Return the pod's process: a warm one that takes a lost one's place, or a new one."""
        command = local_pod.command(pod, surroundings)
        environment = local_pod.environment(pod, surroundings)
        folder = local_pod.trainer(pod).get("workingDir")
        if folder is None and (self._is_in_place_of_another(pod) or self._joins_others(pod)):
            spare = self._spares.take(command, environment=environment, log=self._folders.log(pod))
            if spare is not None:
                return spare
        return await StageProcess.start(command, environment=environment, log=self._folders.log(pod), folder=folder)

    def _is_in_place_of_another(self, pod: Object) -> bool:
        """Tell whether the pod's attempt had a process under this name already."""
        return self._folders.log(pod).exists()

    def _joins_others(self, pod: Object) -> bool:
        """Tell whether others of the pod's attempt are up already: it is of a further replica."""
        others = (rank.pod for rank in self.pods.values())
        return any(_gang_of(other) == _gang_of(pod) and _is_ready(other) for other in others)

    def _spare_environment(self) -> dict[str, str]:
        return {**self._machine.environment, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}

    async def _watch(self, rank: LocalPod, process: StageProcess) -> None:
        probing, began = asyncio.create_task(self._probe(rank)), time.monotonic()
        try:
            code = await process.wait()
        finally:
            probing.cancel()
            process.kill()
        rank.ends = ends_before(rank.ends, ran_s=time.monotonic() - began)
        if self._begins_again(rank, code) and await self._begun_again(rank, code):
            return
        terminated = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "message": self._folders.last_words(rank.pod, code),
            "finishedAt": now(),
        }
        phase = "Succeeded" if code == 0 else "Failed"
        self._set_status(rank, phase=phase, state={"terminated": terminated}, ready=False)
        key = Key(rank.pod["metadata"]["namespace"], rank.pod["metadata"]["name"])
        if rank.pod["metadata"].get("deletionTimestamp") and self.pods.get(key) is rank:
            del self.pods[key]
        self._on_change()

    def _begins_again(self, rank: LocalPod, code: int) -> bool:
        """Tell whether a process begins again in its pod, as a kubelet has it; not for what would end the same."""
        policy = rank.pod["spec"].get("restartPolicy")
        is_wanted = (policy == "Always" or (policy == "OnFailure" and code != 0)) and code != ExitCode.USER_ERROR
        return is_wanted and not rank.pod["metadata"].get("deletionTimestamp") and not self._is_ending

    async def _begun_again(self, rank: LocalPod, code: int) -> bool:
        """Start a pod's process again after a pause; return False if the pod is to end meanwhile."""
        wait_s = pause_s(rank.ends)
        rank.ends += 1
        last = {
            "terminated": {"exitCode": code, "message": self._folders.last_words(rank.pod, code), "finishedAt": now()}
        }
        waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
        self._set_status(rank, phase="Running", state=waiting, ready=False, last=last)
        self._on_change()
        await asyncio.sleep(wait_s)
        if not self._begins_again(rank, code):
            return False
        await self.start(rank)
        self._on_change()
        return True

    async def _probe(self, rank: LocalPod) -> None:
        """Find out when the pod is ready, as its readiness probe says; a pod without one is ready at once."""
        probe = (local_pod.trainer(rank.pod).get("readinessProbe") or {}).get("httpGet")
        # Another process's state can only be polled.
        while probe and await self.get(rank.pod, _port(probe["port"], rank.pod), probe["path"]) is None:  # noqa: ASYNC110
            await asyncio.sleep(_PROBE_PERIOD_S)
        self._tell_ready(rank, is_ready=True)
        self._spares.keep(self.num_spares)
        is_ready = True
        while probe and local_pod.front_port(rank.pod) is not None:
            await asyncio.sleep(_PROBE_AGAIN_S)
            was_ready = is_ready
            is_ready = await self.get(rank.pod, _port(probe["port"], rank.pod), probe["path"]) is not None
            if is_ready is not was_ready:
                self._tell_ready(rank, is_ready=is_ready)

    def _tell_ready(self, rank: LocalPod, *, is_ready: bool) -> None:
        state = rank.pod["status"]["containerStatuses"][0]["state"]
        self._set_status(rank, phase="Running", state=state, ready=is_ready)
        self._on_change()

    def fronts(self) -> list[int]:
        """Return the ports here of the fronts that are ready, and not asked to stop."""
        return [
            rank.surroundings.ports[port]
            for rank in self.pods.values()
            if rank.surroundings is not None
            and (port := local_pod.front_port(rank.pod)) is not None
            and rank.pod["metadata"].get("deletionTimestamp") is None
            and _is_ready(rank.pod)
        ]

    def _set_status(
        self, rank: LocalPod, *, phase: str, state: dict[str, Any], ready: bool, last: dict[str, Any] | None = None
    ) -> None:
        """Set a pod's status; `last` is how its process ended that begins again."""
        started = rank.pod["status"].get("startTime") or now()
        before = (rank.pod["status"].get("containerStatuses") or [{}])[0]
        rank.pod = {
            **rank.pod,
            "metadata": {**rank.pod["metadata"], "resourceVersion": self._next_revision()},
            "status": {
                "phase": phase,
                "startTime": started,
                "podIP": "127.0.0.1",
                "hostIP": "127.0.0.1",
                "conditions": conditions(scheduled=True, ready=ready),
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

    def _surroundings(self, pod: Object) -> Surroundings:
        return Surroundings(
            mounts=self._folders.mounts(pod),
            ports={port: local_pod.free_port() for port in local_pod.container_ports(pod)},
            rendezvous=self._rendezvous_of(pod),
            output=self._folders.root,
            termination_log=self._folders.termination_log(pod),
            inherited=self._machine.environment,
            threads=self._machine.threads(self._live()),
            gpus=self._lend_gpus(local_pod.requested(pod, _GPU)),
        )

    def _live(self) -> int:
        return sum(rank.pod["status"]["phase"] in {"Pending", "Running"} for rank in self.pods.values())

    def _lend_gpus(self, count: int) -> tuple[str, ...]:
        lent = {
            gpu
            for rank in self.pods.values()
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

    def _url(self, pod: Object, port: int, path: str) -> str | None:
        rank = self.pods.get(Key(pod["metadata"]["namespace"], pod["metadata"]["name"]))
        if rank is None or rank.surroundings is None:
            return None
        return f"http://127.0.0.1:{rank.surroundings.ports.get(port, port)}{path}"


def _kill_if_running(rank: LocalPod) -> None:
    if rank.process and rank.task and not rank.task.done():
        rank.process.kill()


def conditions(*, scheduled: bool, ready: bool) -> list[dict[str, str]]:
    """Return a pod's conditions."""
    facts = {"PodScheduled": scheduled, "Ready": ready, "ContainersReady": ready}
    return [{"type": name, "status": "True" if fact else "False"} for name, fact in facts.items()]


def _port(port: int | str, pod: Object) -> int:
    if isinstance(port, int):
        return port
    for declared in local_pod.trainer(pod).get("ports", ()):
        if declared.get("name") == port:
            return int(declared["containerPort"])
    return names.PORT_METRICS


def _gang_of(pod: Object) -> tuple[str | None, str]:
    return (pod["metadata"].get("labels") or {}).get(names.LABEL_JOB), local_pod.attempt(pod)


def _is_ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])


def now() -> str:
    """Return the time as objects' metadata have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
