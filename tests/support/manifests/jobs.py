"""Builders of jobs and nodes for tests: the least that is valid, and what a test wants different."""

import copy

from pipelinejob.base import names

SPEC = {
    "model": {"gpt": {"numLayers": 6, "hiddenSize": 64, "numHeads": 4}},
    "data": {"corpus": "python-stdlib"},
    "parallelism": {"pipeline": 2},
    "schedule": {"name": "1F1B", "microBatches": 4},
    "training": {"steps": 100},
}


def job(name="gpt", namespace="default", **spec):
    """Build a manifest; keyword arguments replace parts of its spec."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": copy.deepcopy(SPEC) | spec,
    }


def serving(**spec):
    """Build a manifest of a job that serves, `m`; a part that is None is left out."""
    model = {"huggingFace": {"path": "/models/m"}, "numLayers": 6}
    parts = {"mode": "Serve", "model": model, "parallelism": {"pipeline": 3}, "device": "cpu"} | spec
    return job("m") | {"spec": {name: value for name, value in parts.items() if value is not None}}


def node(name, *, gpus=1, labels=None, **allocatable):
    """Build a ready node."""
    resources = {"cpu": "16", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": str(gpus)} | allocatable
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name} | (labels or {})},
        "spec": {},
        "status": {"allocatable": resources, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def nodes(count, **kwargs):
    """Build several like nodes: n0, n1, ..."""
    return [node(f"n{index}", **kwargs) for index in range(count)]


def priority_class(name, value, *, policy="PreemptLowerPriority", default=False, gangs=False):
    """Build a PriorityClass."""
    annotations = {names.ANNOTATION_GANG_PREEMPTION: "true"} if gangs else {}
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name, "annotations": annotations},
        "value": value,
        "globalDefault": default,
        "preemptionPolicy": policy,
    }


def foreign(name, node_name, *, owner="ReplicaSet", **requests):
    """Build somebody else's running pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "other",
            "ownerReferences": [{"kind": owner, "uid": "x", "controller": True}],
        },
        "spec": {"nodeName": node_name, "containers": [{"name": "c", "resources": {"requests": requests}}]},
        "status": {"phase": "Running"},
    }
