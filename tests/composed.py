"""Plays composed clusters (`composedcases.py`) against a real API server and a real kube-scheduler, many at a time.

    .venv/bin/python tests/composed.py [--cases 200] [--first-seed 0] [--at-once 12]

Of each it holds: the job ends as it should, on nodes that would do; what kept it from starting was
said in one sentence, and held no node meanwhile; none was held in vain for longer than the
timeouts say; and nothing that stood there before is other than it was, while the job waits, when
it has ended, and when it is deleted. The operator is killed and started again all the while.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import toolchain
from pipelinejob.base import names
from support.api_server.apiserver import ApiServer
from support.api_server.composedcases import (
    JOB,
    OBSTACLES,
    RIVAL,
    Built,
    Case,
    build,
    case,
    job,
    rival,
    volume,
    way_out,
)
from support.api_server.operatorprocess import OperatorProcess
from support.api_server.scriptedkubelet import MERGE, Rest, Script, ScriptedKubelets
from support.local.processes import wait_until

PATIENCE_S = 420.0  # for machines on which everything is slow
GANG_TIMEOUT_S = 15
SLACK_S = 60.0
RESTART_EVERY_S = 30.0
_CRDS = Path(__file__).parents[1] / "crds"
_FOLDERS = {
    "Node": "/api/v1/nodes",
    "PersistentVolume": "/api/v1/persistentvolumes",
    "RuntimeClass": "/apis/node.k8s.io/v1/runtimeclasses",
    "MutatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies",
    "MutatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings",
    "Namespace": "/api/v1/namespaces",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "ResourceQuota": "/api/v1/namespaces/{}/resourcequotas",
    "LimitRange": "/api/v1/namespaces/{}/limitranges",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    names.KIND: "/apis/pipelinejob.io/v1alpha1/namespaces/{}/pipelinejobs",
}


class Stage:
    """A server with a scheduler, scripted kubelets and the operator, on which cases are played."""

    def __init__(self, server: ApiServer, kubelets: ScriptedKubelets, operator: OperatorProcess) -> None:
        self.rest = Rest(server)
        self.kubelets = kubelets
        self.operator = operator

    def play(self, case: Case) -> None:
        """Play a case to its end; raises AssertionError or TimeoutError that says what did not hold."""
        built = build(case)
        script = self._furnish(case, built)
        before = self._seen(built)
        self.create(_annotated(job(case), case))
        if case.interlude == "rival":
            self.create(_annotated(rival(case), case))
        if case.obstacle != "none":
            self._meet_obstacle(case, built, before)
        if case.interlude == "suspended":
            self._suspend(case, script)
        wait_until(lambda: self._is_over(case), f"{case} ends", timeout_s=PATIENCE_S, poll_s=0.5)
        self._check_end(case, built)
        if case.interlude == "rival":
            wait_until(lambda: self._is_over(case, RIVAL), f"{case}: the rival ends", timeout_s=PATIENCE_S, poll_s=0.5)
            assert self.conditions(case, RIVAL)["Succeeded"]["status"] == "True", f"{case}: the rival failed"
            self.delete(rival(case))
        if case.obstacle != "secret":
            assert script.longest_idle_s < GANG_TIMEOUT_S + SLACK_S, (
                f"{case}: held {script.longest_idle_s:.0f} s in vain"
            )
        self.delete(job(case))
        wait_until(lambda: not self._of_job(case), f"{case}: all goes with the job", timeout_s=PATIENCE_S)
        assert self._seen(built) == before, f"{case}: something foreign was touched"
        self._leave(case, built)

    def _furnish(self, case: Case, built: Built) -> Script:
        held_back = case.interlude == "suspended"
        script = Script(faulty=frozenset(built.faulty), ending=case.ending, is_held_back=held_back)
        self.kubelets.play(case.namespace, JOB, script)
        self.kubelets.play(case.namespace, RIVAL, Script(faulty=script.faulty))
        for name in (case.namespace, f"strangers-{case.seed}"):
            self.create({"kind": "Namespace", "metadata": {"name": name, "labels": {"team": case.namespace}}})
        if case.obstacle == "claim":
            self.create(volume(case))
        for item in (*built.cluster, *built.foreign):
            self.create(item)
        if case.change in {"mirror", "toleration", "memory"}:
            wait_until(lambda: self._is_mutated(case), f"{case}: the policy is in force", timeout_s=PATIENCE_S)
        return script

    def _suspend(self, case: Case, script: Script) -> None:
        """Suspend the job once it trains, and resume it."""
        path = f"{_FOLDERS[names.KIND].format(case.namespace)}/{JOB}"
        wait_until(lambda: self.conditions(case)["Ready"]["status"] == "True", f"{case} trains", timeout_s=PATIENCE_S)
        self.rest.send("PATCH", path, {"spec": {"suspend": True}}, content_type=MERGE)
        wait_until(lambda: self.status(case)["state"] == "Suspended", f"{case} is suspended", timeout_s=PATIENCE_S)
        assert not self._holding(case), f"{case}: a suspended job holds nodes"
        script.is_held_back = False
        self.rest.send("PATCH", path, {"spec": {"suspend": False}}, content_type=MERGE)

    def _meet_obstacle(self, case: Case, built: Built, before: list[Any]) -> None:
        wait_until(lambda: self._says(case), f"{case} says {OBSTACLES[case.obstacle]}", timeout_s=PATIENCE_S)
        if case.obstacle != "secret":
            wait_until(lambda: not self._holding(case), f"{case} holds nothing", timeout_s=PATIENCE_S)
        assert self._seen(built) == before, f"{case}: something foreign was touched while the job waited"
        makes, takes = way_out(case, built)
        for item in takes:
            self.delete(item)
        for item in makes:
            self.create(item)
            if item["kind"] == "Node":
                built.good.add(item["metadata"]["name"])
        gone = [built.foreign.index(item) for item in takes]
        positions = [len(built.cluster) + index for index in gone]
        for position in sorted(positions, reverse=True):
            del before[position]
        built.foreign = [item for item in built.foreign if item not in takes]

    def _says(self, case: Case) -> bool:
        wanted, found = OBSTACLES[case.obstacle], self.conditions(case)
        told = [found.get(kind, {}) for kind in ("Placed", "Ready")]
        return any(
            each.get("message") and (each.get("reason") in wanted or wanted[0] in each["message"]) for each in told
        )

    def _is_over(self, case: Case, name: str = JOB) -> bool:
        return self.conditions(case, name).get("Succeeded", {}).get("status") in {"True", "False"}

    def _check_end(self, case: Case, built: Built) -> None:
        ended = self.conditions(case)["Succeeded"]
        is_well = case.ending != "by-user-error"
        assert ended["status"] == str(is_well), f"{case}: {ended['reason']}: {ended['message']}"
        wait_until(lambda: not self._holding(case), f"{case} gives everything back", timeout_s=PATIENCE_S)
        stages = self.status(case)["stages"]
        places = {stage["node"] for stage in stages}
        assert places <= built.good, f"{case}: it ended on {sorted(places - built.good)}"

    def _holding(self, case: Case) -> list[str]:
        pods = self.rest.send("GET", _FOLDERS["Pod"].format(case.namespace))["items"]
        return [
            pod["metadata"]["name"]
            for pod in pods
            if (pod["metadata"].get("labels") or {}).get(names.LABEL_JOB) == JOB
            and pod["spec"].get("nodeName")
            and pod["status"].get("phase") not in {"Succeeded", "Failed"}
        ]

    def _of_job(self, case: Case) -> list[str]:
        """Name what was made for the job and still stands."""
        selector = f"?labelSelector={names.LABEL_JOB}={JOB}"
        folders = [_FOLDERS[kind].format(case.namespace) for kind in ("Pod", "Service", "ConfigMap")]
        found = [item for folder in folders for item in self.rest.send("GET", folder + selector)["items"]]
        return [item["metadata"]["name"] for item in found if item["metadata"].get("ownerReferences")]

    def status(self, case: Case, name: str = JOB) -> dict[str, Any]:
        return self.rest.send("GET", f"{_FOLDERS[names.KIND].format(case.namespace)}/{name}").get("status") or {}

    def conditions(self, case: Case, name: str = JOB) -> dict[str, dict[str, Any]]:
        return {each["type"]: each for each in self.status(case, name).get("conditions") or ()}

    def _seen(self, built: Built) -> list[Any]:
        return [self._plain(self.rest.get(_path(item))) for item in (*built.cluster, *built.foreign)]

    @staticmethod
    def _plain(item: dict[str, Any] | None) -> Any:
        if item is None:
            return None
        metadata = {
            key: value for key, value in item["metadata"].items() if key not in {"resourceVersion", "managedFields"}
        }
        status = item.get("status") if item.get("kind") != "ResourceQuota" else None  # what is used of it changes
        return {**item, "metadata": metadata, "status": status}

    def _is_mutated(self, case: Case) -> bool:
        spec = {
            "tolerations": [{"key": "x", "operator": "Exists"}],
            "containers": [{"name": "x", "image": "x", "resources": {"requests": {"memory": "1Mi"}}}],
        }
        pod = {"kind": "Pod", "metadata": {"name": "probe", "labels": {names.LABEL_JOB: JOB}}, "spec": spec}
        answer = self.rest.send("POST", f"{_FOLDERS['Pod'].format(case.namespace)}?dryRun=All", pod)["spec"]
        container = answer["containers"][0]
        return (
            container["image"] != "x"
            or container["resources"]["requests"]["memory"] != "1Mi"
            or any(each.get("key") == "sandbox" for each in answer["tolerations"])
        )

    def create(self, item: dict[str, Any]) -> None:
        folder = _FOLDERS[item["kind"]].format(item["metadata"].get("namespace"))
        self.rest.send("POST", folder, item)
        if "status" in item and item["kind"] != "Node":  # which is created with its status
            self.rest.send("PATCH", f"{_path(item)}/status", {"status": item["status"]}, content_type=MERGE)

    def delete(self, item: dict[str, Any]) -> None:
        uid = self._uid(item)
        self.rest.send("DELETE", _path(item), {"gracePeriodSeconds": 0})
        # The job's own may stand there at once.
        wait_until(lambda: self._uid(item) != uid, f"{_path(item)} is gone", timeout_s=PATIENCE_S)

    def _uid(self, item: dict[str, Any]) -> str | None:
        found = self.rest.get(_path(item))
        return found["metadata"]["uid"] if found else None

    def _leave(self, case: Case, built: Built) -> None:
        """Take the case's nodes and policies away, so that they keep nobody busy."""
        for name in built.good | {item["metadata"]["name"] for item in built.cluster if item["kind"] == "Node"}:
            self.rest.send("DELETE", f"/api/v1/nodes/{name}")
        for item in built.cluster:
            if item["kind"] != "Node":
                self.rest.send("DELETE", _path(item))


def _path(item: dict[str, Any]) -> str:
    metadata = item["metadata"]
    return f"{_FOLDERS[item['kind']].format(metadata.get('namespace'))}/{metadata['name']}"


def _annotated(manifest: dict[str, Any], case: Case) -> dict[str, Any]:
    """Tell the kubelets how many pods make a gang."""
    template = manifest["spec"]["template"]
    template["metadata"] = {"annotations": {"test.pipelinejob.io/stages": str(case.stages)}}
    return manifest


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Set everything up."""
    toolchain.provide(toolchain.APISERVER_TIER)
    with ApiServer(folder / "server") as server:
        server.kubectl("apply", "--server-side", "-f", _CRDS)
        server.kubectl("wait", "--for=condition=Established", "crd/pipelinejobs.pipelinejob.io", "--timeout=120s")
        server.start_scheduler()
        server.start_controllers()
        # Alone, so that one that is killed leaves no Lease to be waited for.
        flags = ("--no-leader-election", f"--gang-timeout-seconds={GANG_TIMEOUT_S}")
        with (
            OperatorProcess(server.kubeconfig, folder / "operator", *flags) as operator,
            ScriptedKubelets(server) as kubelets,
        ):
            yield Stage(server, kubelets, operator)
            assert operator.alive, operator.process.tail()


def play_all(on: Stage, cases: Sequence[Case], *, at_once: int, told: Callable[[str], None]) -> list[str]:
    """Play cases, several at a time; give what did not hold."""

    def play(each: Case) -> str | None:
        began = time.monotonic()
        try:
            on.play(each)
        except (AssertionError, TimeoutError, RuntimeError) as error:
            said = {kind: found.get("message") for kind, found in on.conditions(each).items() if found.get("message")}
            told(f"WRONG {each}: {error}")
            return f"{error}\n    {json.dumps(said)}"
        told(f"held in {time.monotonic() - began:.0f} s: {each}")
        return None

    with _restarted(on.operator), ThreadPoolExecutor(at_once) as pool:
        return [problem for problem in pool.map(play, cases) if problem is not None]


@contextmanager
def _restarted(operator: OperatorProcess) -> Iterator[None]:
    """Kill the operator again and again, and start another that remembers nothing."""
    is_over = threading.Event()

    def restart() -> None:
        while not is_over.wait(RESTART_EVERY_S):
            operator.process.stop(signal.SIGKILL)
            operator.start()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def main() -> int:
    """Play as many cases as are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=12)
    given = parser.parse_args()
    cases = [case(seed) for seed in range(given.first_seed, given.first_seed + given.cases)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="composed-") as folder, stage(Path(folder)) as on:
        problems = play_all(on, cases, at_once=given.at_once, told=lambda line: print(line, flush=True))
    print(f"{len(cases) - len(problems)} of {len(cases)} held, in {time.monotonic() - began:.0f} s")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
