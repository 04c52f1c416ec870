"""What is told of each job at a scrape: conditions, restarts, progress and placement, as its status has them.

Ten thousand jobs are a quarter of a million lines, and hardly any changes between two scrapes: the
lines of a job are kept until its resource version is another, and go when the job goes. No
collector of the library's can do that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipelinejob.spec.reported.conditions import ConditionStatus, ConditionType
from pipelinejob_operator.cluster import Object

_JOBS_A_PART = 500
_STATUSES = ("True", "False", "Unknown")

Sample = tuple[str, Mapping[str, str], float]  # a family, labels beside the job's own, and the value


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of jobs, each labelled with `namespace` and `pipelinejob` at least."""

    name: str
    help: str
    kind: str = "gauge"


FAMILIES: Final = (
    Family("pipelinejob_status_condition", "Whether a job's condition has this status: 1 or 0."),
    Family("pipelinejob_restarts_total", "Restarts counted against the job's failure policy.", "counter"),
    Family("pipelinejob_job_step", "Optimiser steps completed."),
    Family("pipelinejob_job_loss", "Loss of the last step seen, nats a token."),
    Family("pipelinejob_job_bubble_ratio", "Measured bubble of late, the mean over stages."),
    Family("pipelinejob_placement_crossings", "Neighbouring stages parted at a level of the network."),
    Family(
        "pipelinejob_placement_room_left",
        "Stages like the job's that still fitted into one domain of a level when it was placed.",
    ),
    Family("pipelinejob_placement_penalty_ratio", "Predicted share of a step that the job's crossings cost."),
    Family(
        "pipelinejob_placement_least_penalty_ratio",
        "The least of it that any place would have cost with what was free.",
    ),
    Family("pipelinejob_job_spares", "Pods kept warm to take a lost stage's place, by whether they are ready."),
    Family("pipelinejob_job_spares_used_total", "Lost stages whose place a spare took.", "counter"),
    Family("pipelinejob_waiting_reason", "1 for the reason why a job has no place."),
)


@dataclass(frozen=True, slots=True)
class _Told:
    """A job's lines, one text a family, as of a resource version."""

    version: str
    texts: tuple[bytes, ...]


class JobsText:
    """The jobs' metrics in Prometheus' text format."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}  # by uid

    def render(self, jobs: Sequence[Object]) -> Iterator[bytes]:
        """Return the text of all families for these jobs, in parts; any thread may read them, one at a time."""
        self._told = {job["metadata"]["uid"]: self._tell(job) for job in jobs}
        texts = [told.texts for told in self._told.values()]
        for index, family in enumerate(FAMILIES):
            yield f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n".encode()
            # No part is so long that making or sending it keeps others from their turn.
            for start in range(0, len(texts), _JOBS_A_PART):
                yield b"".join([text[index] for text in texts[start : start + _JOBS_A_PART]])

    def _tell(self, job: Object) -> _Told:
        metadata = job["metadata"]
        version = metadata["resourceVersion"]
        told = self._told.get(metadata["uid"])
        return told if told and told.version == version else _Told(version, _texts(job))


def _texts(job: Object) -> tuple[bytes, ...]:
    own = {"namespace": job["metadata"]["namespace"], "pipelinejob": job["metadata"]["name"]}
    lines: dict[str, list[str]] = {}
    for name, labels, value in _samples(job.get("status") or {}):
        text = ",".join(f'{label}="{_escaped(said)}"' for label, said in {**own, **labels}.items())
        lines.setdefault(name, []).append(f"{name}{{{text}}} {value!r}\n")
    return tuple("".join(lines.get(family.name, ())).encode() for family in FAMILIES)


def _samples(status: Mapping[str, Any]) -> Iterator[Sample]:
    for condition in status.get("conditions") or ():
        for value in _STATUSES:
            labels = {"type": condition["type"], "status": value}
            yield "pipelinejob_status_condition", labels, float(condition["status"] == value)
    yield "pipelinejob_restarts_total", {}, float(status.get("restarts", 0))
    measured = {
        "step": "pipelinejob_job_step",
        "loss": "pipelinejob_job_loss",
        "bubble": "pipelinejob_job_bubble_ratio",
    }
    for field, name in measured.items():
        if (number := _number(status.get(field))) is not None:
            yield name, {}, number
    yield from _spares(status)
    yield from _place(status)


def _spares(status: Mapping[str, Any]) -> Iterator[Sample]:
    """Tell of jobs that keep spares, or would if there was room."""
    recovery = status.get("recovery") or {}
    spares = recovery.get("spares") or ()
    if not (spares or recovery.get("fewerSpares") or recovery.get("sparesUsed")):
        return
    num_ready = sum(bool(each.get("ready")) for each in spares)
    yield "pipelinejob_job_spares", {"state": "ready"}, float(num_ready)
    yield "pipelinejob_job_spares", {"state": "starting"}, float(len(spares) - num_ready)
    yield "pipelinejob_job_spares_used_total", {}, float(recovery.get("sparesUsed", 0))


def _place(status: Mapping[str, Any]) -> Iterator[Sample]:
    """Tell how good the job's place is, or why it has none."""
    placement = status.get("placement") or {}
    levels = {
        "pipelinejob_placement_crossings": status.get("crossings"),
        "pipelinejob_placement_room_left": placement.get("roomLeft"),
    }
    for name, counts in levels.items():
        for level, count in (counts or {}).items():
            yield name, {"level": level}, float(count)
    shares = {
        "pipelinejob_placement_penalty_ratio": placement.get("penalty"),
        "pipelinejob_placement_least_penalty_ratio": placement.get("leastPenalty"),
    }
    for name, share in shares.items():
        if (number := _number(share)) is not None:
            yield name, {}, number
    if status.get("completionTime") is None:
        for condition in status.get("conditions") or ():
            if (condition["type"], condition["status"]) == (ConditionType.PLACED, ConditionStatus.FALSE):
                yield "pipelinejob_waiting_reason", {"reason": condition["reason"]}, 1.0


def _number(text: object) -> float | None:
    """Read a number of a status back: 120, `2.431` or `27.3%`."""
    try:
        return float(str(text).removesuffix("%")) / (100 if str(text).endswith("%") else 1)
    except ValueError:
        return None


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
