"""Pods of a late-bound job: made without a rank for the cluster's scheduler, told their rank once they are bound.

A pod cannot be renamed, nor its environment changed. So its name is an ordinal, and its rank comes
by an annotation, which the kubelet shows it as a file within moments.
"""

from collections.abc import Sequence
from typing import Any

from pipelinejob.base import names
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.making.manifests import kept_off, stage_pod, stage_template
from pipelinejob_operator.objects.making.pod_template import merge

_VOLUME = "rank"
# What it cannot know yet.
_OF_A_RANK = frozenset({names.ENV_STAGE, names.ENV_REPLICA, names.ENV_RENDEZVOUS})


def unnumbered_pod(
    job: Job,
    spec: PipelineJobSpec,
    ordinal: int,
    *,
    attempt: int,
    settings: ControllerSettings,
    not_on: Sequence[str] = (),
) -> Object:
    """Render a pod that may become any rank like the one of this ordinal; it is free to go, but `not_on` some nodes."""
    pod = stage_pod(job, spec, job.ranks[ordinal], attempt=attempt, settings=settings)
    name = names.unnumbered_pod_name(job.key.name, ordinal=ordinal)
    metadata, pod_spec = dict(pod["metadata"]), dict(pod["spec"])
    labels = {
        key: value for key, value in metadata["labels"].items() if key not in {names.LABEL_STAGE, names.LABEL_REPLICA}
    }
    gates = [gate for gate in pod_spec.pop("schedulingGates") if gate["name"] != names.GATE_GANG]
    annotations = metadata.get("annotations", {}) | {
        names.ANNOTATION_SHAPE: str(_first_like(spec, job.ranks[ordinal].stage))
    }
    pod_spec |= {"hostname": name, "volumes": [*pod_spec["volumes"], _rank_volume()]}
    pod_spec["containers"] = [
        _without_rank(each) if each["name"] == names.CONTAINER_TRAINER else each for each in pod_spec["containers"]
    ]
    return {
        **pod,
        "metadata": metadata
        | {"name": name, "labels": labels | {names.LABEL_ORDINAL: str(ordinal)}, "annotations": annotations},
        "spec": (kept_off(pod_spec, not_on) if not_on else pod_spec) | ({"schedulingGates": gates} if gates else {}),
    }


def pod_names(job: Job) -> tuple[str, ...]:
    """Name a job's pods, in the order of its ranks, for which those of a late-bound one were made."""
    if job.binds_late:
        return tuple(names.unnumbered_pod_name(job.key.name, ordinal=ordinal) for ordinal in range(len(job.ranks)))
    return tuple(names.pod_name(job.key.name, replica=rank.replica, stage=rank.stage) for rank in job.ranks)


def shape(pod: Object) -> str:
    """Say which ranks the pod may become: those whose pods have the same shape."""
    return str((pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_SHAPE, ""))


def is_numbered(pod: Object) -> bool:
    """Tell whether the pod was told its rank."""
    return names.ANNOTATION_RANK in (pod["metadata"].get("annotations") or {})


def numbering(rank: Rank, *, rendezvous: str) -> dict[str, Any]:
    """Return what tells a pod its rank: labels for people and selectors, annotations for the trainer.

    `rendezvous` is host:port of replica 0, stage 0.
    """
    told = {
        "labels": {names.LABEL_REPLICA: str(rank.replica), names.LABEL_STAGE: str(rank.stage)},
        "annotations": {
            names.ANNOTATION_RANK: f"{rank.replica}/{rank.stage}",
            names.ANNOTATION_RENDEZVOUS: rendezvous,
        },
    }
    return {"metadata": told}


def _first_like(spec: PipelineJobSpec, stage: int) -> int:
    own = stage_template(spec, stage)
    return next(other for other in range(stage + 1) if stage_template(spec, other) == own)


def _rank_volume() -> dict[str, Any]:
    annotations = {names.RANK_FILE: names.ANNOTATION_RANK, names.RENDEZVOUS_FILE: names.ANNOTATION_RENDEZVOUS}
    items = [
        {"path": path, "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{annotation}']"}}
        for path, annotation in annotations.items()
    ]
    return {"name": _VOLUME, "downwardAPI": {"items": items}}


def _without_rank(container: dict[str, Any]) -> dict[str, Any]:
    kept = [each for each in container["env"] if each["name"] not in _OF_A_RANK]
    mount = {"name": _VOLUME, "mountPath": names.RANK_MOUNT, "readOnly": True}
    added = {"env": [{"name": names.ENV_RANK, "value": names.RANK_MOUNT}], "volumeMounts": [mount]}
    return merge({**container, "env": kept}, added)
