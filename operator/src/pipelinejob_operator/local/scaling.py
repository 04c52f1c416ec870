"""Another number of replicas for a job on this machine: what `kubectl scale` writes in a cluster.

A run trains a job of which all is decided. One that is to be scaled says instead how many sequences a step has over
all replicas, and its status says what was decided for those that there are.
"""

from collections.abc import Mapping
from typing import Any

from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.job import PipelineJobSpec


def scaled(job: Mapping[str, Any], replicas: int) -> dict[str, Any]:
    """Return a job, `scalable` as it is, with so many replicas."""
    spec = job["spec"]
    return {**job, "spec": {**spec, "parallelism": {**spec["parallelism"], "data": replicas}}}


def scalable(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a decided job with the sequences of a step in the place of the micro-batches of each replica."""
    spec = PipelineJobSpec.model_validate(job["spec"])
    if spec.is_open:
        return dict(job)
    kept = {key: value for key, value in job["spec"]["schedule"].items() if key not in {"microBatches", "batchSize"}}
    size = {"microBatchSize": spec.schedule.micro_batch_size, "globalBatchSize": _sequences(spec)}
    parallelism = {**(job["spec"].get("parallelism") or {}), "data": spec.parallelism.data}
    return {**job, "spec": {**job["spec"], "schedule": {**kept, **size}, "parallelism": parallelism}}


def choice_of(job: Mapping[str, Any]) -> Chosen | None:
    """Return what was decided for a job that is to become scalable; None for one that is, whose status says it."""
    spec = PipelineJobSpec.model_validate(job["spec"])
    if spec.is_open:
        return None
    schedule, degrees = spec.schedule, spec.parallelism
    return Chosen(
        pipeline=degrees.pipeline or 1,
        data=degrees.data or 1,
        tensor=degrees.tensor or 1,
        schedule=schedule.name,
        virtual_stages=schedule.virtual_stages,
        micro_batches=schedule.micro_batches,
        micro_batch_size=schedule.micro_batch_size,
        batch_size=schedule.batch_size,
        recompute=bool(schedule.recompute),
        recompute_stages=schedule.recompute_stages,
        recompute_layers=schedule.recompute_layers,
    )


def _sequences(spec: PipelineJobSpec) -> int:
    return spec.schedule.sequences * (spec.parallelism.data or 1)
