"""A PipelineJob as the controller reads it: parsed once at the border, trusted afterwards."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import NamedTuple
from weakref import WeakValueDictionary

from pydantic import ValidationError

from pipelinejob.base import names
from pipelinejob.contract.progress import SPARE_REPLICA
from pipelinejob.spec.chosen import resolved
from pipelinejob.spec.job import Mode, PipelineJobSpec
from pipelinejob.spec.reported.conditions import Condition, ConditionStatus, ConditionType
from pipelinejob.spec.running.scheduling import Binding
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.cluster import Key, Object


class Rank(NamedTuple):
    """One pod's place in the job."""

    replica: int
    stage: int

    @classmethod
    def spare(cls, number: int) -> "Rank":
        """Return what stands for a rank where a pod is kept to take a lost stage's place."""
        return cls(SPARE_REPLICA, number)

    @property
    def is_spare(self) -> bool:
        """Tell whether it is no stage's, but that of a spare, or of a pod that has no number yet."""
        return self.replica == SPARE_REPLICA

    def __str__(self) -> str:
        if self.is_spare:
            return f"spare {self.stage}"
        return f"stage {self.stage} of replica {self.replica}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Identity, wish and last report of a job. `spec` is None when what is stored can't be read as one."""

    key: Key
    uid: str
    generation: int
    created: str  # RFC 3339, as the API server wrote it: sorts as text
    spec: PipelineJobSpec | None
    status: PipelineJobStatus
    raw: Object
    is_deleting: bool = False
    flavors: tuple[str, ...] = ()  # of Kueue's nodes that it was admitted to; `spec` has what they add to its pods
    leaves_open: bool = False  # the spec as written; `spec` has what the status says was chosen
    wanted_replicas: int | None = None  # that the spec asks for as it is written; None where they are to be chosen
    written: PipelineJobSpec | None = None  # the spec without what was chosen

    @cached_property
    def ranks(self) -> tuple[Rank, ...]:
        """Return every rank, replica by replica, stage by stage; none for an unreadable spec."""
        if self.spec is None or self.spec.parallelism.is_open:
            return ()
        parallelism = self.spec.parallelism
        return tuple(Rank(r, s) for r in range(parallelism.data) for s in range(parallelism.pipeline))

    @property
    def queue(self) -> str | None:
        """Name the Kueue queue whose quota the job waits for; None if only the operator's own line counts."""
        return (self.raw["metadata"].get("labels") or {}).get(names.LABEL_QUEUE) or None

    @property
    def chain_of(self) -> str | None:
        """Name the job that serves of which this one is a chain; None if it is no other's."""
        return (self.raw["metadata"].get("labels") or {}).get(names.LABEL_SERVICE) or None

    @property
    def is_service(self) -> bool:
        """Tell whether it has no pods of its own, but chains: jobs that serve alike."""
        return self.spec is not None and self.spec.mode is Mode.SERVE and self.chain_of is None

    @property
    def is_finished(self) -> bool:
        """Tell whether the job has ended, for ever."""
        succeeded = condition(self.status, ConditionType.SUCCEEDED)
        return succeeded is not None and succeeded.status is not ConditionStatus.UNKNOWN

    @property
    def binds_late(self) -> bool:
        """Tell whether the cluster's scheduler chooses the nodes, and the ranks are numbered along them afterwards."""
        return self.spec is not None and self.spec.scheduling.binding is Binding.LATE

    @property
    def has_begun(self) -> bool:
        """Tell whether pods of the present attempt may be there."""
        return self.is_placed or self.status.released_time is not None

    @property
    def is_resized(self) -> bool:
        """Tell whether the spec asks for another number of replicas than was chosen."""
        if not self.leaves_open or self.spec is None or self.status.chosen is None or self.wanted_replicas is None:
            return False
        return self.wanted_replicas != self.status.chosen.data

    @cached_property
    def is_placed(self) -> bool:
        """Tell whether the present attempt holds nodes."""
        return bool(self.status.stages) and all(stage.node is not None for stage in self.status.stages)


def read_job(raw: Object) -> Job:
    """Read a stored PipelineJob. A spec or status of another shape reads as absent; validation says what is wrong."""
    metadata = raw["metadata"]
    written, status = _spec(raw), _status(raw)
    leaves_open = written is not None and written.is_open
    return Job(
        key=Key(metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        created=metadata.get("creationTimestamp") or "",
        spec=resolved(written, status.chosen) if written and leaves_open and status.chosen else written,
        status=status,
        raw=raw,
        leaves_open=leaves_open,
        written=written,
        wanted_replicas=written.parallelism.data if written else None,
        is_deleting=metadata.get("deletionTimestamp") is not None,
    )


def condition(status: PipelineJobStatus, kind: ConditionType) -> Condition | None:
    """Return the condition of this type, if it was ever written."""
    return next((each for each in status.conditions if each.type == kind), None)


def parse_time(text: str) -> datetime:
    """Read an API timestamp."""
    return datetime.fromisoformat(text)


def format_time(moment: datetime) -> str:
    """Write an API timestamp, to the second, as the API server does."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _spec(raw: Object) -> PipelineJobSpec | None:
    """Return the spec; one object for all jobs whose specs are written alike, since it is never changed."""
    written = hashlib.sha256(json.dumps(raw.get("spec")).encode()).digest()
    known = _specs.get(written)
    if known is None:
        try:
            known = _specs[written] = PipelineJobSpec.model_validate(raw.get("spec"))
        except ValidationError:
            return None
    return known


_specs: WeakValueDictionary[bytes, PipelineJobSpec] = WeakValueDictionary()


def _status(raw: Object) -> PipelineJobStatus:
    try:
        return _lean(PipelineJobStatus.model_validate(raw.get("status") or {}))
    except ValidationError:
        return PipelineJobStatus()


def _lean(status: PipelineJobStatus) -> PipelineJobStatus:
    """Have what was written with the same fields share the set of their names, half of what a condition takes.

    pydantic gives each its own; copies of a model copy it before they change it, and nothing else
    changes it.
    """
    for each in (status, *status.conditions, *status.stages):
        own = each.model_fields_set
        object.__setattr__(each, "__pydantic_fields_set__", _field_names.setdefault(frozenset(own), own))
    return status


_field_names: dict[frozenset[str], set[str]] = {}
