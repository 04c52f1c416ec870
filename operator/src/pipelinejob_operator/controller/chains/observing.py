"""What a pass over a job that serves sees: its chains, read from the jobs that it owns, and what else is its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.reported.conditions import ConditionStatus, ConditionType, State
from pipelinejob_operator.cluster import Cluster, Object
from pipelinejob_operator.controller.chains.moves import Chain
from pipelinejob_operator.objects.job import Job, condition, parse_time, read_job
from pipelinejob_operator.objects.making.chains import chain_spec

GIVEN_UP_S = 60.0  # a chain that is not ready for so long is not counted on


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The chains of one job, with the jobs that they are, and its service and budget as they stand."""

    chains: tuple[Chain, ...]
    jobs: Mapping[str, Job]  # by name
    furniture: Mapping[str, Object]  # by kind

    def of(self, each: Chain) -> Job:
        """Return the job that a chain is."""
        return self.jobs[each.name]


def see(cluster: Cluster, job: Job, spec: PipelineJobSpec, now: datetime) -> Seen:
    """Read a job's chains."""
    wanted = PipelineJobSpec.model_validate(chain_spec(job, spec)).dump()
    jobs = {read.key.name: read for read in map(read_job, cluster.chains(job.key)) if _number(read) is not None}
    chains = tuple(_chain(each, wanted, now) for _, each in sorted(jobs.items()))
    furniture = {item["kind"]: item for item in cluster.furniture(job.key)}
    return Seen(chains=chains, jobs=jobs, furniture=furniture)


def _chain(job: Job, wanted: Mapping[str, object], now: datetime) -> Chain:
    ready = condition(job.status, ConditionType.READY)
    is_ready = ready is not None and ready.status is ConditionStatus.TRUE
    is_suspended = job.spec is not None and job.spec.suspend
    since = parse_time(ready.last_transition_time) if ready is not None and not is_ready else now
    failed = condition(job.status, ConditionType.SUCCEEDED)
    has_failed = failed is not None and failed.status is not ConditionStatus.UNKNOWN
    number = _number(job)
    assert number is not None, "only chains are read"
    return Chain(
        number=number,
        name=job.key.name,
        is_current=job.spec is not None and job.spec.model_copy(update={"suspend": False}).dump() == wanted,
        is_ready=is_ready and not is_suspended and not job.is_deleting,
        is_given_up=(now - since).total_seconds() >= GIVEN_UP_S,
        is_leaving=(is_suspended and not has_failed) or job.is_deleting,
        has_left=is_suspended and job.status.state is State.SUSPENDED and not job.is_deleting,
        failure=failed.message if has_failed and failed is not None else None,
    )


def _number(job: Job) -> int | None:
    text = job.key.name.rpartition("-")[2]
    return int(text) if text.isdecimal() else None
