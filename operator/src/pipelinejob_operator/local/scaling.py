"""Another shape for a job on this machine: what `kubectl scale`, or an editor, writes in a cluster.

A run trains a job of which all is decided. One that is to be scaled says instead how many
sequences a step has over all replicas, and its status says what was decided for those that there
are.
"""

from collections.abc import Mapping
from typing import Any

from pipelinejob.base.values import Value
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.chosen import Chosen, decided
from pipelinejob.spec.job import PipelineJobSpec


class Wish(Value):
    """What a run is asked for; None: as it is."""

    replicas: int | None = None
    stages: int | None = None
    layers: tuple[int, ...] | None = None
    schedule: ScheduleName | None = None

    @property
    def words(self) -> str:
        """What is asked for, for people."""
        layers = "/".join(map(str, self.layers or ()))
        words = {
            _counted(self.replicas or 0, "replica"): self.replicas,
            _counted(self.stages or 0, "stage"): self.stages,
            f"{layers} layers": self.layers,
            f"{self.schedule}": self.schedule,
        }
        return ", ".join(word for word, is_asked in words.items() if is_asked)


def scaled(job: Mapping[str, Any], wish: Wish) -> dict[str, Any]:
    """Return a job, `scalable` as it is, with what is asked for; layers that would not fit are divided by cost."""
    spec = job["spec"]
    degrees = {"data": wish.replicas, "pipeline": wish.stages}
    parallelism = {**spec["parallelism"], **{key: each for key, each in degrees.items() if each is not None}}
    schedule, partition = dict(spec["schedule"]), dict(spec.get("partition") or {})
    if wish.schedule is not None and wish.schedule != schedule.get("name"):
        schedule = {**{key: each for key, each in schedule.items() if key != "virtualStages"}, "name": wish.schedule}
    if wish.layers is not None:
        partition["layers"] = list(wish.layers)
    elif (wish.stages, wish.schedule) != (None, None):
        partition.pop("layers", None)
    changes = {"parallelism": parallelism, "schedule": schedule, "partition": partition}
    return {**job, "spec": {**spec, **changes}}


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
    return decided(spec)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _sequences(spec: PipelineJobSpec) -> int:
    return spec.schedule.sequences * (spec.parallelism.data or 1)
