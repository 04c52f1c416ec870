"""A job's standing with Kueue: whether it may hold nodes now, and in Kueue's own words why not.

Kueue reckons, we run: it admits a Workload and may take that back; we stop the pods then and hand
the quota over only when none of them is left. What a job controller owes Kueue is written in its
`pkg/controller/jobframework`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pipelinejob.base import names
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.admission.line.priority import NO_PRIORITY_CLASS, Priorities
from pipelinejob_operator.cluster import Kueue, Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, format_time
from pipelinejob_operator.objects.peers.workload import (
    MAX_POD_SETS,
    PRIORITY_CLASS_LABEL,
    PodSet,
    Urgency,
    asks_alike,
    condition,
    flavors_of,
    holds,
    num_pods,
    pod_sets,
    with_flavors,
    workload,
)

# Reasons of Admitted and Placed.
NO_KUEUE = "NoKueue"
QUOTA_PENDING = "QuotaPending"
QUOTA_TAKEN_BACK = "QuotaTakenBack"
TOO_MANY_SHAPES = "TooManyShapes"

# A job that waits for these waits for Kueue, not for room: it keeps no other from having it.
WAITS_FOR_KUEUE = frozenset({NO_KUEUE, QUOTA_PENDING, QUOTA_TAKEN_BACK, TOO_MANY_SHAPES, NO_PRIORITY_CLASS})

# Kueue puts a Workload back into its queue by itself after these; after the others somebody, or a
# timer, has to.
_REQUEUED_AT_ONCE = frozenset({"Preempted", "NodeFailures"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a job with a queue asked Kueue for, and what it has."""

    queue: str
    kueue: Kueue | None
    sets: tuple[PodSet, ...]
    wanted: Object | None  # the Workload to ask with; None if `problem` or there is no Kueue
    problem: tuple[str, str] | None = None  # reason and sentence: nothing can be asked for

    @property
    def workload(self) -> Object | None:
        """Return the job's Workload as it stands, unless it is on its way out."""
        found = self.kueue.workload if self.kueue else None
        return None if found is None or found["metadata"].get("deletionTimestamp") else found

    @property
    def is_admitted(self) -> bool:
        """Tell whether pods may run now."""
        found = self.workload
        return (
            found is not None
            and found.get("spec", {}).get("active") is not False
            and holds(found, "Admitted")
            and not holds(found, "Evicted")
            and not holds(found, "Finished")
        )

    @property
    def is_stale(self) -> bool:
        """Tell whether the job has come to ask for something else."""
        return self.workload is not None and self.wanted is not None and not asks_alike(self.workload, self.wanted)

    def num_spares(self, num_ranks: int) -> int:
        """Return how many pods beside those of its ranks the job may have now."""
        found = self.workload
        return 0 if found is None or not self.is_admitted else max(0, num_pods(found) - num_ranks)

    def laid_over(self, job: Job) -> Job:
        """Return the job whose pods go where the flavors are that Kueue assigned."""
        if job.spec is None or self.workload is None or self.kueue is None or not self.is_admitted:
            return job
        spec = with_flavors(job.spec, self.workload, self.sets, self.kueue.flavors)
        return replace(job, spec=spec, flavors=flavors_of(self.workload))

    def why_pending(self) -> tuple[str, str]:
        """Say why the job holds no quota: reason and sentence."""
        if self.kueue is None:
            return NO_KUEUE, (
                f"waits for queue {self.queue}, but this operator sees no Kueue; install it and set kueue.enabled in "
                f"the operator's chart, or take the label {names.LABEL_QUEUE} off"
            )
        if self.problem is not None:
            return self.problem
        return QUOTA_PENDING, f"waits for quota in queue {self.queue}: {self._last_words()}"

    def why_taken_back(self) -> str:
        """Say in Kueue's words why a job that runs has to go."""
        found = self.workload
        evicted = condition(found, "Evicted") if found else None
        if found is None:
            return "its Workload was deleted"
        if evicted and evicted["status"] == "True":
            return f"{evicted['reason']}: {evicted.get('message', '')}".rstrip(": ")
        if found.get("spec", {}).get("active") is False:
            return "its Workload was deactivated (spec.active: false)"
        return "its Workload is admitted no more"

    def _last_words(self) -> str:
        found = self.workload
        if found is None:
            return "Kueue was asked and has not answered yet"
        if found.get("spec", {}).get("active") is False:
            evicted = condition(found, "Evicted") or {}
            said = f" ({evicted['message']})" if evicted.get("message") else ""
            name = found["metadata"]["name"]
            return f"its Workload {name} is deactivated{said}; set spec.active: true there to queue it again"
        reserved, admitted = condition(found, "QuotaReserved"), condition(found, "Admitted")
        if reserved and reserved["status"] == "True":
            return f"quota is reserved, admission checks are under way{_said(admitted)}"
        return f"not reserved{_said(reserved)}" if reserved else "Kueue has not looked at it yet"


def quota_of(
    job: Job, spec: PipelineJobSpec, kueue: Kueue | None, priorities: Priorities, settings: ControllerSettings
) -> Quota | None:
    """Read a job's standing; None if it names no queue."""
    queue = job.queue
    if queue is None:
        return None
    if kueue is None:
        return Quota(queue=queue, kueue=None, sets=(), wanted=None)
    sets = pod_sets(job, spec, settings)
    name = (job.raw["metadata"].get("labels") or {}).get(PRIORITY_CLASS_LABEL)
    problem = _problem(sets, name, kueue) or _unknown_class(job, spec, priorities)
    if problem is not None:
        return Quota(queue=queue, kueue=kueue, sets=sets, wanted=None, problem=problem)
    wanted = workload(
        job,
        sets,
        queue=queue,
        spec=spec,
        urgency=_urgency(job, spec, name, kueue, priorities),
        api_version=kueue.api_version,
    )
    return Quota(queue=queue, kueue=kueue, sets=sets, wanted=wanted)


def handed_over(item: Object, now: datetime) -> dict[str, Any]:
    """Return the status that lets go of quota, once no pod of an evicted Workload is left."""
    evicted = condition(item, "Evicted") or {"reason": "Deactivated", "message": ""}
    reason, message = evicted["reason"], evicted.get("message", "")
    is_back = "True" if reason in _REQUEUED_AT_ONCE else "False"
    conditions = _with(item, now, "QuotaReserved", "False", "Pending", message)
    conditions = _with(conditions, now, "Admitted", "False", "NoReservation", "The workload has no reservation")
    conditions = _with(conditions, now, "Requeued", is_back, reason, message)
    return {"admission": None, "conditions": conditions["status"]["conditions"]}


def finished(item: Object, now: datetime, *, is_success: bool, message: str) -> dict[str, Any]:
    """Return the status that tells Kueue that the job has ended and its quota is free."""
    reason = "Succeeded" if is_success else "Failed"
    return {"conditions": _with(item, now, "Finished", "True", reason, message)["status"]["conditions"]}


def readiness(item: Object, now: datetime, *, is_ready: bool) -> dict[str, Any] | None:
    """Return the status that tells Kueue whether all pods are up, None if it knows.

    Kueue waits for it where `waitForPodsReady` is set, and evicts jobs that take too long.
    """
    last = condition(item, "PodsReady") or {}
    was_up = last.get("status") == "True" or last.get("reason") in {"WaitForRecovery", "Recovered"}
    if is_ready:
        reason = "Recovered" if last.get("reason") in {"WaitForRecovery", "Recovered"} else "Started"
    else:
        reason = "WaitForRecovery" if was_up else "WaitForStart"
    status = "True" if is_ready else "False"
    if last.get("status") == status:
        return None
    message = "All stages are up" if is_ready else "Not all stages are up"
    return {"conditions": _with(item, now, "PodsReady", status, reason, message)["status"]["conditions"]}


def _problem(sets: tuple[PodSet, ...], priority_class: str | None, kueue: Kueue) -> tuple[str, str] | None:
    if len(sets) > MAX_POD_SETS:
        return TOO_MANY_SHAPES, (
            f"Kueue takes at most {MAX_POD_SETS} kinds of pods and this job's stages are of {len(sets)}; "
            f"let more stages share requests and node selectors in spec.stageTemplates"
        )
    if priority_class and priority_class not in kueue.priority_classes:
        return NO_PRIORITY_CLASS, (
            f"the label {PRIORITY_CLASS_LABEL} names WorkloadPriorityClass {priority_class}, which does not exist; "
            f"create it, or name another"
        )
    return None


def _unknown_class(job: Job, spec: PipelineJobSpec, priorities: Priorities) -> tuple[str, str] | None:
    if priorities.knows(job):
        return None
    return NO_PRIORITY_CLASS, (
        f"spec.scheduling.priorityClassName names {spec.scheduling.priority_class_name}, which does not exist; "
        f"create it, or name another"
    )


def _urgency(job: Job, spec: PipelineJobSpec, name: str | None, kueue: Kueue, priorities: Priorities) -> Urgency:
    # As in Kueue's own jobs its own class goes before that of the pods.
    if name is not None:
        value = int(kueue.priority_classes[name].get("value", 0))
        return Urgency(value=value, group="kueue.x-k8s.io", kind="WorkloadPriorityClass", name=name)
    value, own = priorities.of(job).value, spec.scheduling.priority_class_name
    return Urgency(value=value, group="scheduling.k8s.io", kind="PriorityClass", name=own)


def _said(found: Mapping[str, Any] | None) -> str:
    return f": {found['message']}" if found and found.get("message") else ""


def _with(item: Object, now: datetime, kind: str, status: str, reason: str, message: str) -> Object:  # noqa: PLR0917  # a condition's own fields
    conditions = list(item.get("status", {}).get("conditions") or ())
    last = condition(item, kind)
    moved = last["lastTransitionTime"] if last and last["status"] == status else format_time(now)
    new = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": moved,
        "observedGeneration": item["metadata"].get("generation", 1),
    }
    kept = [each for each in conditions if each["type"] != kind]
    return {**item, "status": {**item.get("status", {}), "conditions": [*kept, new]}}
