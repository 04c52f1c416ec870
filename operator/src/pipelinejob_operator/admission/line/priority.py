"""What PriorityClasses say: which job stands higher, and whether it may make others go.

A class counts for whole gangs. `preemptionPolicy: Never` is honoured: such a job waits, however
high it stands. An annotation on the class lets gangs preempt all the same
(`pipelinejob.io/gang-preemption: "true"`): then the operator makes room by whole jobs, while
kube-scheduler, which reads the policy, takes no single pod away for one of ours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from pipelinejob.base import names
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.job import Job

NO_PRIORITY_CLASS = "NoPriorityClass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Priority:
    """How high a job stands. Kubernetes' own value where no class is named and none is the default: 0, may preempt."""

    value: int = 0
    preempts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Priorities:
    """The PriorityClasses of the cluster."""

    classes: Mapping[str, Priority] = field(default_factory=dict)
    default: Priority = field(default_factory=Priority)

    @classmethod
    def read(cls, items: Iterable[Object]) -> Self:
        """Read them; of several that call themselves the default, Kubernetes takes the lowest, and so do we."""
        classes = {item["metadata"]["name"]: (item, _priority(item)) for item in items}
        defaults = [each for item, each in classes.values() if item.get("globalDefault")]
        return cls(
            classes={name: each for name, (_, each) in classes.items()},
            default=min(defaults, key=lambda each: each.value, default=Priority()),
        )

    def knows(self, job: Job) -> bool:
        """Tell whether the class that the job names exists."""
        name = _class_name(job)
        return name is None or name in self.classes

    def of(self, job: Job) -> Priority:
        """Return the job's priority; the default's if its class does not exist (any more)."""
        name = _class_name(job)
        return self.default if name is None else self.classes.get(name, self.default)


def _class_name(job: Job) -> str | None:
    return job.spec.scheduling.priority_class_name if job.spec else None


def _priority(item: Object) -> Priority:
    annotations = item["metadata"].get("annotations") or {}
    is_for_gangs = annotations.get(names.ANNOTATION_GANG_PREEMPTION) == "true"
    return Priority(value=int(item["value"]), preempts=is_for_gangs or item.get("preemptionPolicy") != "Never")
