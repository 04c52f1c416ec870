"""Kueue's Workload of a job: what its pods ask for, so that Kueue can reckon quotas; read back, what Kueue made of it.

Only what decides about quota and flavors goes in: requests, and what says on which nodes a pod may
stand.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelinejob.base import names
from pipelinejob.spec.job import PipelineJobSpec, StageTemplate
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.making.manifests import owner_reference, stage_pod, stage_template
from pipelinejob_operator.objects.making.pod_template import merge
from pipelinejob_operator.objects.making.spares import like_stage

KIND = "Workload"
PRIORITY_CLASS_LABEL = "kueue.x-k8s.io/priority-class"
MAX_POD_SETS = 18  # Kueue's own limit

_ASKED = f"{names.GROUP}/asked"  # a digest of what the job asked for, to notice when it asks for something else
_POD_FIELDS = ("nodeSelector", "affinity", "tolerations", "overhead", "resources", "runtimeClassName")
_CONTAINER_FIELDS = ("name", "image", "resources", "restartPolicy")
_UPDATES = ("nodeSelector", "tolerations", "labels", "annotations")
_MAX_NAME, _DIGEST = 63, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSet:
    """Stages that ask for the same: Kueue reckons them together."""

    stages: tuple[int, ...]
    template: Object

    @property
    def name(self) -> str:
        """Return the name of the set, after its first stage."""
        return f"like-stage-{self.stages[0]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Urgency:
    """How urgent Kueue should take the job to be: a number, and the class that says so."""

    value: int = 0
    group: str | None = None
    kind: str | None = None
    name: str | None = None

    def fields(self, api_version: str) -> dict[str, Any]:
        """Return the fields of a Workload's spec, the only ones in which its versions differ for us."""
        if self.name is None or self.group is None or self.kind is None:
            return {"priority": self.value}
        if api_version.endswith("/v1beta1"):
            source = f"{self.group}/{self.kind.lower()}"
            return {"priority": self.value, "priorityClassName": self.name, "priorityClassSource": source}
        reference = {"group": self.group, "kind": self.kind, "name": self.name}
        return {"priority": self.value, "priorityClassRef": reference}


def workload_name(name: str, uid: str) -> str:
    """Name a job's Workload, as Kueue names those of its own jobs; a namesake of a deleted job has another."""
    digest = hashlib.sha256(uid.encode()).hexdigest()[:_DIGEST]
    return f"{f'{names.SINGULAR}-{name}'[: _MAX_NAME - _DIGEST - 1].rstrip('-.')}-{digest}"


def pod_sets(job: Job, spec: PipelineJobSpec, settings: ControllerSettings) -> tuple[PodSet, ...]:
    """Group the stages by what their pods ask for."""
    overridden = {each.stage for each in spec.stage_templates}
    plain: Object | None = None  # of all stages without a template of their own
    groups: dict[str, tuple[list[int], Object]] = {}
    for stage in range(spec.parallelism.pipeline):
        template = plain if plain and stage not in overridden else None
        template = template or _template(stage_pod(job, spec, Rank(0, stage), attempt=0, settings=settings))
        plain = plain if stage in overridden else template
        groups.setdefault(_text(template), ([], template))[0].append(stage)
    return tuple(PodSet(stages=tuple(stages), template=template) for stages, template in groups.values())


def workload(
    job: Job, sets: Sequence[PodSet], *, queue: str, spec: PipelineJobSpec, urgency: Urgency, api_version: str
) -> Object:
    """Render the job's Workload: its spares are reckoned with the stages that they are like."""
    num_replicas, spares_like = spec.parallelism.data, like_stage(spec)
    num_spares = spec.recovery.spares if spec.recovery.in_place else 0
    asked = {
        "queueName": queue,
        **urgency.fields(api_version),
        "podSets": [
            {
                "name": each.name,
                "count": len(each.stages) * num_replicas + (num_spares if spares_like in each.stages else 0),
                "template": each.template,
            }
            for each in sets
        ],
    }
    return {
        "apiVersion": api_version,
        "kind": KIND,
        "metadata": {
            "name": workload_name(job.key.name, job.uid),
            "namespace": job.key.namespace,
            "labels": {names.LABEL_JOB: job.key.name, names.LABEL_MANAGED_BY: names.FIELD_MANAGER},
            "annotations": {_ASKED: hashlib.sha256(_text(asked).encode()).hexdigest()[:16]},
            "ownerReferences": [owner_reference(job)],
        },
        "spec": asked,
    }


def num_pods(item: Object) -> int:
    """Return the pods that a Workload asks for."""
    return sum(int(each.get("count", 1)) for each in item.get("spec", {}).get("podSets") or ())


def asks_alike(one: Object, other: Object) -> bool:
    """Tell whether two Workloads ask for the same, however the API server filled them in."""
    return _asked(one) == _asked(other)


def condition(item: Object, kind: str) -> Mapping[str, Any] | None:
    """Return a condition that Kueue, or we, wrote."""
    return next((each for each in item.get("status", {}).get("conditions") or () if each["type"] == kind), None)


def holds(item: Object, kind: str) -> bool:
    """Tell whether a condition is true."""
    return (condition(item, kind) or {}).get("status") == "True"


def flavors_of(item: Object) -> tuple[str, ...]:
    """Name the flavors that Kueue assigned."""
    assignments = (item.get("status", {}).get("admission") or {}).get("podSetAssignments") or ()
    return tuple(sorted({flavor for each in assignments for flavor in (each.get("flavors") or {}).values()}))


def with_flavors(
    spec: PipelineJobSpec, item: Object, sets: Sequence[PodSet], flavors: Mapping[str, Object]
) -> PipelineJobSpec:
    """Lay over the stages' templates what Kueue's admission says of their nodes: labels to have, taints to stand.

    What admission checks add (the label of a node pool made for the job, say) goes in likewise.
    """
    more = []
    for each in sets:
        additions = _additions(each.name, item, flavors)
        if additions:
            more += [StageTemplate(stage=stage, template=_laid_over(spec, stage, additions)) for stage in each.stages]
    return spec.model_copy(update={"stage_templates": (*spec.stage_templates, *more)}) if more else spec


def _additions(name: str, item: Object, flavors: Mapping[str, Object]) -> list[Object]:
    """Return what is added to the pods of one set, as updates of admission checks are written."""
    status = item.get("status", {})
    assignments = (status.get("admission") or {}).get("podSetAssignments") or ()
    assigned = next((each.get("flavors") or {} for each in assignments if each["name"] == name), {})
    found = [flavors[flavor].get("spec", {}) for flavor in dict.fromkeys(assigned.values()) if flavor in flavors]
    own = [{"nodeSelector": each.get("nodeLabels"), "tolerations": each.get("tolerations")} for each in found]
    checks = [
        update
        for check in status.get("admissionChecks") or ()
        for update in check.get("podSetUpdates") or ()
        if update["name"] == name
    ]
    return [each for each in (*own, *checks) if any(each.get(field) for field in _UPDATES)]


def _laid_over(spec: PipelineJobSpec, stage: int, additions: Iterable[Object]) -> dict[str, Any]:
    tolerations = list(stage_template(spec, stage).get("spec", {}).get("tolerations") or ())
    overlay: dict[str, Any] = {}
    for each in additions:
        metadata = {key: each[key] for key in ("labels", "annotations") if each.get(key)}
        overlay = merge(overlay, {"metadata": metadata, "spec": {"nodeSelector": each.get("nodeSelector") or {}}})
        tolerations += [toleration for toleration in each.get("tolerations") or () if toleration not in tolerations]
    return merge(overlay, {"spec": {"tolerations": tolerations}})


def _template(pod: Object) -> Object:
    spec = pod["spec"]
    kept: dict[str, Any] = {field: spec[field] for field in _POD_FIELDS if spec.get(field)}
    for field in ("initContainers", "containers"):
        if spec.get(field):
            kept[field] = [
                {key: container[key] for key in _CONTAINER_FIELDS if container.get(key)} for container in spec[field]
            ]
    return {"spec": kept}


def _asked(item: Object) -> str | None:
    asked: str | None = (item["metadata"].get("annotations") or {}).get(_ASKED)
    return asked


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
