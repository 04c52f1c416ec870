"""A ProvisioningRequest: how cluster-autoscaler is asked for the nodes of a whole gang, and what it answers.

https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/proposals/provisioning-request.md
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelinejob.base import names
from pipelinejob.spec.running.scheduling import Provisioning
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.job import Job
from pipelinejob_operator.objects.making.manifests import owner_reference
from pipelinejob_operator.objects.peers.workload import PodSet, holds

KIND = "ProvisioningRequest"
API_VERSION = "autoscaling.x-k8s.io/v1"
TEMPLATE_KIND = "PodTemplate"
MAX_POD_SETS = 32  # the API's own limit

# Of pods that take the nodes: the autoscaler makes no further ones for them, and leaves these
# alone.
_CONSUMES = "autoscaling.x-k8s.io/consume-provisioning-request"
_CLASS = "autoscaling.x-k8s.io/provisioning-class-name"
_ASKED = f"{names.GROUP}/asked"  # a digest of what was asked for
_DIGEST = 10


def request_name(name: str, uid: str) -> str:
    """Name a job's request; a namesake of a deleted job has another."""
    return f"{name}-{hashlib.sha256(uid.encode()).hexdigest()[:_DIGEST]}"


def request(job: Job, sets: Sequence[PodSet], provisioning: Provisioning, *, num_replicas: int) -> Object:
    """Render the request for all pods of a job."""
    name = request_name(job.key.name, job.uid)
    spec = {
        "provisioningClassName": provisioning.class_name,
        "parameters": provisioning.parameters,
        "podSets": [
            {"count": len(each.stages) * num_replicas, "podTemplateRef": {"name": _template_name(name, each)}}
            for each in sets
        ],
    }
    asked = json.dumps([spec, [each.template for each in sets]], sort_keys=True)
    metadata = _metadata(job, name)
    metadata["annotations"] = {_ASKED: hashlib.sha256(asked.encode()).hexdigest()[:16]}
    metadata["ownerReferences"] = [owner_reference(job)]
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def pod_templates(job: Job, sets: Sequence[PodSet], made: Object) -> tuple[Object, ...]:
    """Render the pods that a request which was made refers to; they go with it."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": made["metadata"]["name"],
        "uid": made["metadata"]["uid"],
        "controller": True,
    }
    return tuple(
        {
            "apiVersion": "v1",
            "kind": TEMPLATE_KIND,
            "metadata": _metadata(job, _template_name(made["metadata"]["name"], each)) | {"ownerReferences": [owner]},
            "template": each.template,
        }
        for each in sets
    )


def asks_alike(one: Object, other: Object) -> bool:
    """Tell whether two requests ask for the same."""
    return _asked(one) == _asked(other)


def consumption(made: Object | None) -> dict[str, str]:
    """Return the annotations of pods for which a request brought nodes; none if it did not, or not any more."""
    if made is None or not holds(made, "Provisioned") or holds(made, "CapacityRevoked"):
        return {}
    return {_CONSUMES: made["metadata"]["name"], _CLASS: made["spec"]["provisioningClassName"]}


def _metadata(job: Job, name: str) -> dict[str, Any]:
    labels = {names.LABEL_JOB: job.key.name, names.LABEL_MANAGED_BY: names.FIELD_MANAGER}
    return {"name": name, "namespace": job.key.namespace, "labels": labels}


def _template_name(name: str, pods: PodSet) -> str:
    return f"{name}-{pods.name}"


def _asked(item: Mapping[str, Any]) -> str | None:
    return (item["metadata"].get("annotations") or {}).get(_ASKED)
