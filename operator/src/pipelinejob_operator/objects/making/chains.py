"""What a job that serves is made of: chains, each a job of its own with one replica, and the budget of disruptions."""

import copy
from typing import Any

from pipelinejob.base import names
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.job import Job
from pipelinejob_operator.objects.making.manifests import owner_reference

BUDGET = "PodDisruptionBudget"
_OF_THE_WHOLE = ("activeDeadlineSeconds", "ttlSecondsAfterFinished")  # the job's own, not a chain's


def chain(job: Job, spec: PipelineJobSpec, *, number: int) -> Object:
    """Render a chain of a job that serves: the same job with one replica, owned by it."""
    metadata = job.raw["metadata"]
    kueue = {key: value for key, value in (metadata.get("labels") or {}).items() if key.startswith(names.KUEUE)}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": names.chain_name(job.key.name, number=number),
            "namespace": job.key.namespace,
            "labels": kueue | {names.LABEL_SERVICE: job.key.name, names.LABEL_MANAGED_BY: names.FIELD_MANAGER},
            "ownerReferences": [owner_reference(job)],
        },
        "spec": chain_spec(job, spec),
    }


def chain_spec(job: Job, spec: PipelineJobSpec) -> dict[str, Any]:
    """Return the spec of a chain: the job's own, under the job's own model name, with the job's own checkpoints."""
    raw: dict[str, Any] = copy.deepcopy({key: job.raw["spec"][key] for key in job.raw["spec"]})
    for field in _OF_THE_WHOLE:
        raw.pop(field, None)
    serving = {key: value for key, value in (raw.get("serving") or {}).items() if key != "rollingUpdate"}
    serving["modelName"] = (spec.serving and spec.serving.model_name) or job.key.name
    if spec.checkpoint.volume and not spec.checkpoint.path:
        raw["checkpoint"]["path"] = f"{job.key.namespace}/{job.key.name}"
    return raw | {"suspend": False, "serving": serving, "parallelism": raw["parallelism"] | {"data": 1}}


def budget(job: Job, spec: PipelineJobSpec, *, num_chains: int) -> Object:
    """Render the budget that lets one stage of so many chains be evicted, once all are ready again.

    Stages that are not ready may always be: they answer nobody.
    """
    # A number of pods: what may be missing could be told only of pods whose controller counts
    # pods.
    least = max(0, num_chains * spec.parallelism.pipeline - 1)
    return {
        "apiVersion": "policy/v1",
        "kind": BUDGET,
        "metadata": {
            "name": names.front_name(job.key.name),
            "namespace": job.key.namespace,
            "labels": {names.LABEL_JOB: job.key.name, names.LABEL_MANAGED_BY: names.FIELD_MANAGER},
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            "minAvailable": least,
            "selector": {"matchLabels": {names.LABEL_SERVICE: job.key.name}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
