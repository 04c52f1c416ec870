"""Pods that are kept to take a lost stage's place: made like a stage's, without a rank, which they are told over HTTP.

A pod cannot be renamed, nor its environment changed: it keeps its name when it becomes a stage,
and gets its labels.
"""

from collections import Counter
from typing import Any

from pipelinejob.base import names
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.making.manifests import stage_pod, stage_template
from pipelinejob_operator.objects.making.pod_template import merge

_OF_A_RANK = frozenset({names.ENV_STAGE, names.ENV_REPLICA})  # which it does not know yet


def like_stage(spec: PipelineJobSpec) -> int:
    """Return the stage that spares are like: the first of those whose template most stages have."""
    if not spec.stage_templates:
        return 0
    templates = [repr(stage_template(spec, stage)) for stage in range(spec.parallelism.pipeline or 1)]
    counts = Counter(templates)
    return templates.index(max(templates, key=counts.__getitem__))


def may_become(spec: PipelineJobSpec, stage: int) -> bool:
    """Tell whether a spare may take this stage's place: it holds what the stage's own pod would."""
    return stage_template(spec, stage) == stage_template(spec, like_stage(spec))


def spare_pod(
    job: Job, spec: PipelineJobSpec, number: int, *, attempt: int, settings: ControllerSettings, node: str
) -> Object:
    """Render a spare's pod, pinned to its node and free to go."""
    pod = stage_pod(job, spec, Rank(0, like_stage(spec)), attempt=attempt, settings=settings, node=node)
    name = names.spare_pod_name(job.key.name, number=number)
    metadata = pod["metadata"]
    labels = {key: value for key, value in metadata["labels"].items() if key not in _RANK_LABELS}
    containers = [
        _without_rank(each, number) if each["name"] == names.CONTAINER_TRAINER else each
        for each in pod["spec"]["containers"]
    ]
    return {
        **pod,
        "metadata": {**metadata, "name": name, "labels": labels | {names.LABEL_SPARE: str(number)}},
        "spec": {**pod["spec"], "hostname": name, "containers": containers},
    }


def of_rank(rank: Rank) -> dict[str, Any]:
    """Return the change of a spare's pod that has become a stage's: its labels, for people and selectors."""
    return {"metadata": {"labels": {names.LABEL_REPLICA: str(rank.replica), names.LABEL_STAGE: str(rank.stage)}}}


_RANK_LABELS = frozenset({names.LABEL_STAGE, names.LABEL_REPLICA})


def _without_rank(container: dict[str, Any], number: int) -> dict[str, Any]:
    kept = [each for each in container["env"] if each["name"] not in _OF_A_RANK]
    return merge({**container, "env": kept}, {"env": [{"name": names.ENV_SPARE, "value": str(number)}]})
