"""Clusters put together at random from what people do to theirs: what stands there, what a job wants, what goes wrong.

A case is a value; the same seed gives the same one. Every case has nodes that would do, one for
each rank, beside decoys that seem to; what keeps the job from starting, if anything does, is one
obstacle with what must be said of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from pipelinejob.base import names

POOL = "test.pipelinejob.io/pool"  # a case's own nodes
ZONE = "topology.kubernetes.io/zone"
HOSTNAME = "kubernetes.io/hostname"
JOB, RIVAL = "train", "rival"

DECOYS = ("tainted", "cordoned", "small", "resized", "port", "shy", "distant", "faulty", "unforeseen")
RULES = ("none", "anti-affinity", "spread", "host-network")
CHANGES = ("none", "mirror", "toleration", "memory", "runtime-class", "limit-range")
SIDECARS = ("none", "container", "native")
INTERLUDES = ("none", "suspended", "rival")  # a rival is a second job, for the same nodes
ENDINGS = ("well", "crash-once", "out-of-memory-once", "by-user-error")
# What is waited for, with reasons of the conditions Placed and Ready: one of them is given, or
# stands in a message.
OBSTACLES: dict[str, tuple[str, ...]] = {
    "none": (),
    "service": ("NamesTaken",),
    "config-map": ("NamesTaken",),
    "pod": ("NamesTaken",),
    "quota": ("Refused",),
    "claim": ("NoVolume",),
    "room": ("NoRoom", "NeverFits"),
    "secret": ("FailedMount",),
}
GPUS, MEMORY = 2, "64Gi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One cluster and one job."""

    seed: int
    stages: int
    decoys: tuple[str, ...]
    rule: str
    change: str
    sidecar: str
    ending: str
    obstacle: str
    interlude: str

    @property
    def namespace(self) -> str:
        return f"composed-{self.seed}"

    def __str__(self) -> str:
        parts = [
            f"{self.stages} stages",
            *self.decoys,
            self.rule,
            self.change,
            self.sidecar,
            self.ending,
            self.obstacle,
            self.interlude,
        ]
        return f"case {self.seed}: {', '.join(part for part in parts if part != 'none')}"


def case(seed: int) -> Case:
    """Return the case of a seed."""
    dice = random.Random(seed)
    rule = dice.choice(RULES)
    decoys = [each for each in DECOYS if (each != "port" or rule == "host-network")]
    return Case(
        seed=seed,
        stages=dice.randint(1, 3),
        decoys=tuple(sorted(dice.sample(decoys, dice.randint(0, 3)))),
        rule=rule,
        change=dice.choice(CHANGES),
        sidecar=dice.choice(SIDECARS),
        ending=dice.choice(ENDINGS),
        obstacle=dice.choice([*OBSTACLES, "none", "none"]),
        interlude=dice.choice(INTERLUDES),
    )


@dataclass(slots=True)
class Built:
    """The objects of a case, in the order in which they are made."""

    cluster: list[dict[str, Any]] = field(default_factory=list)  # of no namespace
    foreign: list[dict[str, Any]] = field(default_factory=list)  # in the job's, or beside it
    good: set[str] = field(default_factory=set)  # nodes on which the gang may end up
    faulty: set[str] = field(default_factory=set)  # nodes whose kubelet refuses every pod


def build(case: Case) -> Built:
    """Return all that stands there before the job."""
    built = Built()
    for number in range(case.stages):
        name = f"z-good{number}-{case.seed}"  # decoys come first by name
        built.good.add(name)
        built.cluster.append(_node(case, name, gpus=0 if case.obstacle == "room" else GPUS, zone=f"zone{number}"))
    for kind in case.decoys:
        _add_decoy(built, case, kind)
    _add_change(built, case)
    _add_obstacle(built, case)
    return built


def job(case: Case) -> dict[str, Any]:
    """Return the job."""
    spec: dict[str, Any] = {"nodeSelector": {POOL: str(case.seed)}, "containers": [{"name": names.CONTAINER_TRAINER}]}
    if case.sidecar == "container":
        spec["containers"].append(_sidecar())
    if case.sidecar == "native":
        spec["initContainers"] = [{**_sidecar(), "restartPolicy": "Always"}]
    own = {"matchLabels": {names.LABEL_JOB: JOB}}
    if case.rule == "anti-affinity":
        term = {"labelSelector": own, "topologyKey": HOSTNAME}
        spec["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    if case.rule == "spread":
        rule = {"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": own}
        spec["topologySpreadConstraints"] = [rule]
    if case.rule == "host-network":
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if case.change == "runtime-class":
        spec["runtimeClassName"] = case.namespace
    if case.obstacle == "secret":
        spec["volumes"] = [{"name": "token", "secret": {"secretName": "token"}}]
        spec["containers"][0]["volumeMounts"] = [{"name": "token", "mountPath": "/token"}]
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"namespace": case.namespace, "name": JOB},
        "spec": {
            "model": {"gpt": {"numLayers": 4, "hiddenSize": 64, "numHeads": 4}},
            "data": {"corpus": "python-stdlib"},
            "parallelism": {"pipeline": case.stages},
            "schedule": {"microBatches": 4},
            "training": {"steps": 100},
            "template": {"spec": spec},
            **({"checkpoint": {"volume": {"claimName": "shared"}}} if case.obstacle == "claim" else {}),
        },
    }


def rival(case: Case) -> dict[str, Any]:
    """Return a job that wants nothing but room."""
    manifest = job(case)
    manifest["metadata"] = {"namespace": case.namespace, "name": RIVAL}
    manifest["spec"]["template"] = {"spec": {"nodeSelector": {POOL: str(case.seed)}}}
    manifest["spec"].pop("checkpoint", None)
    return manifest


def way_out(case: Case, built: Built) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what a person makes, and what they take away, so that the job can go on."""
    in_the_way = [each for each in built.foreign if (each["kind"], each["metadata"]["name"]) in _TAKEN]
    match case.obstacle:
        case "service" | "config-map" | "pod":
            return [], in_the_way
        case "quota":
            return [], [each for each in built.foreign if each["kind"] == "ResourceQuota"]
        case "claim":
            return [_claim(case)], []
        case "secret":
            return [_named(case, "v1", "Secret", "token")], []
        case "room":
            return [
                _node(case, f"z-more{number}-{case.seed}", gpus=GPUS, zone=f"zone{number}")
                for number in range(case.stages)
            ], []
        case _:
            return [], []


_TAKEN = {
    ("Service", names.service_name(JOB)),
    ("ConfigMap", names.plan_name(JOB)),
    ("Pod", names.pod_name(JOB, replica=0, stage=0)),
}


def _add_decoy(built: Built, case: Case, kind: str) -> None:
    name = f"a-{kind}-{case.seed}"
    gpus = 0 if case.obstacle == "room" else 2 * case.stages
    node = _node(case, name, gpus=gpus, zone="zone0")
    if kind == "tainted":
        node["spec"] = {"taints": [{"key": "reserved", "value": "yes", "effect": "NoSchedule"}]}
    if kind == "cordoned":
        node["spec"] = {"unschedulable": True}
    if kind == "small":
        # As the pods are written they need 4 Gi.
        memory = "5Gi" if case.change in {"memory", "runtime-class"} else "3Gi"
        node["status"]["allocatable"] = node["status"]["capacity"] | {"memory": memory}
    if kind == "distant":
        node["metadata"]["labels"][POOL] = "another"
    if kind == "faulty":
        built.faulty.add(name)
    built.cluster.append(node)
    if kind == "resized":
        built.foreign.append(_pod(case, f"resized-{case.seed}", name, cpu="1"))
    if kind == "port":
        port = {"containerPort": 80, "hostPort": names.PORT_METRICS}
        built.foreign.append(_pod(case, f"exporter-{case.seed}", name, ports=[port]))
    if kind in {"shy", "unforeseen"}:
        # Of a namespace's own labels only the scheduler knows.
        by_label = {"matchLabels": {"team": case.namespace}} if kind == "unforeseen" else {}
        term = {"labelSelector": {"matchLabels": {names.LABEL_JOB: JOB}}, "topologyKey": HOSTNAME}
        affinity = {"requiredDuringSchedulingIgnoredDuringExecution": [{**term, "namespaceSelector": by_label}]}
        built.foreign.append(_pod(case, f"{kind}-{case.seed}", name, affinity={"podAntiAffinity": affinity}))


def _add_change(built: Built, case: Case) -> None:
    if case.change in EXPRESSIONS:
        built.cluster += _policy(case, EXPRESSIONS[case.change])
    if case.change == "runtime-class":
        overhead = {"podFixed": {"memory": "6Gi"}}
        head = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": case.namespace}}
        built.cluster.append({**head, "handler": "kata", "overhead": overhead})
    if case.change == "limit-range":
        limit = {"type": "Container", "defaultRequest": {"memory": "2Gi"}}
        built.foreign.append({**_named(case, "v1", "LimitRange", "defaults"), "spec": {"limits": [limit]}})
    if case.change == "toleration":  # where it is tolerated, it opens the nodes that would do
        for node in built.cluster:
            if node["kind"] == "Node" and node["metadata"]["name"] in built.good:
                node["spec"] = {"taints": [{"key": "sandbox", "value": "kata", "effect": "NoSchedule"}]}


def _add_obstacle(built: Built, case: Case) -> None:
    if case.obstacle == "service":
        ports = [{"name": "sql", "port": 5432}]
        service = _named(case, "v1", "Service", names.service_name(JOB))
        built.foreign.append({**service, "spec": {"selector": {"app": "database"}, "ports": ports}})
    if case.obstacle == "config-map":
        built.foreign.append({**_named(case, "v1", "ConfigMap", names.plan_name(JOB)), "data": {"mine": "yes"}})
    if case.obstacle == "pod":
        pod = _pod(case, names.pod_name(JOB, replica=0, stage=0), f"z-good0-{case.seed}", namespace=case.namespace)
        built.foreign.append(pod)
    if case.obstacle == "quota":
        hard = {"requests.nvidia.com/gpu": "0"}
        quota = _named(case, "v1", "ResourceQuota", "compute")
        built.foreign.append({**quota, "spec": {"hard": hard}, "status": {"hard": hard, "used": hard}})


EXPRESSIONS = {
    "mirror": '[JSONPatch{op: "replace", path: "/spec/containers/0/image", '
    'value: "mirror.corp/" + object.spec.containers[0].image}]',
    "toleration": '[JSONPatch{op: "add", path: "/spec/tolerations/-", '
    'value: Object.spec.tolerations{key: "sandbox", operator: "Exists", effect: "NoSchedule"}}]',
    "memory": '[JSONPatch{op: "replace", path: "/spec/containers/0/resources/requests/memory", value: "20Gi"}]',
}


def _policy(case: Case, expression: str) -> list[dict[str, Any]]:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    version, name = "admissionregistration.k8s.io/v1", case.namespace
    constraints = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
        "objectSelector": {"matchExpressions": [{"key": names.LABEL_JOB, "operator": "Exists"}]},
        "resourceRules": [rule],
    }
    policy = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": constraints,
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
        },
    }
    binding = {
        "apiVersion": version,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name},
    }
    return [policy, binding]


def _node(case: Case, name: str, *, gpus: int, zone: str) -> dict[str, Any]:
    capacity = {"cpu": "32", "memory": MEMORY, "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {HOSTNAME: name, POOL: str(case.seed), ZONE: f"{zone}-{case.seed}"}},
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "scripted"}],
        },
    }


def _pod(case: Case, name: str, node: str, *, namespace: str = "", **spec: Any) -> dict[str, Any]:
    """Return a pod of another owner that runs; with `cpu`, one that asks for so little, and holds 31 more."""
    cpu, ports = spec.pop("cpu", "100m"), spec.pop("ports", [])
    container = {
        "name": "x",
        "image": "x",
        "resources": {"requests": {"cpu": cpu}},
        **({"ports": ports} if ports else {}),
    }
    metadata = {"name": name, "namespace": namespace or f"strangers-{case.seed}", "labels": {"app": "stranger"}}
    held = {"allocatedResources": {"cpu": "32"}, "resources": {"requests": {"cpu": "32"}}} if cpu == "1" else {}
    status = {"name": "x", "image": "x", "imageID": "", "ready": True, "restartCount": 0}
    running = {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 0, **spec},
        "status": {"phase": "Running", "containerStatuses": [status | held | running]},
    }


def _claim(case: Case) -> dict[str, Any]:
    claim = _named(case, "v1", "PersistentVolumeClaim", "shared")
    wanted = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": case.namespace}
    bound = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}
    return {
        **claim,
        "metadata": {**claim["metadata"], "annotations": bound},
        "spec": {**wanted, "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Bound", "accessModes": ["ReadWriteMany"], "capacity": {"storage": "1Gi"}},
    }


def volume(case: Case) -> dict[str, Any]:
    """Return the volume of the claim, which can be reached from the nodes that would do."""
    expression = {"key": POOL, "operator": "In", "values": [str(case.seed)]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": case.namespace},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "hostPath": {"path": "/data"},
            "claimRef": {"namespace": case.namespace, "name": "shared"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
        },
        "status": {"phase": "Bound"},
    }


def _named(case: Case, version: str, kind: str, name: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": case.namespace}}


def _sidecar() -> dict[str, Any]:
    return {"name": "log-shipper", "image": "fluent-bit:3", "resources": {"requests": {"cpu": "100m"}}}
