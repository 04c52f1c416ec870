"""The cluster as one admission sees it: what is free, who holds what, and whose room is about to come free."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Self

from pipelinejob.quantities import Resources
from pipelinejob_operator.admission.asking import asked_to_leave
from pipelinejob_operator.admission.capacity import (
    Claim,
    Promise,
    belongs_to_node,
    claim,
    free_room,
    identity,
    minus,
    plus,
)
from pipelinejob_operator.admission.queueing import Order
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, parse_time

Free = Mapping[str, Resources]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One moment, for one job. `running` are others that hold nodes and were not told to leave."""

    nodes: Sequence[Object]
    waiting: tuple[Job, ...]  # those that hold nothing
    order: Order
    free: Free  # now, for anybody
    empty: Free  # if all work were done
    asked: Mapping[str, Job]  # who makes way for whom, by the uid of the one that was asked
    running: tuple[Job, ...]
    held: Mapping[str, tuple[Claim, ...]]  # by the uid of a running job, like what follows
    leaving: Mapping[str, tuple[Claim, ...]]  # of pods that are ending, and of jobs that were told to make way

    @classmethod
    def of(
        cls,
        *,
        own: Job,
        nodes: Sequence[Object],
        pods: Sequence[Object],
        jobs: Sequence[Job],
        promises: Mapping[str, Promise],
        order: Order,
        empty: Free,
        now: datetime,
        settings: ControllerSettings,
    ) -> Self:
        """Sort out who holds what. `promises` are those of all jobs, by uid."""
        others = {uid: promise for uid, promise in promises.items() if uid != own.uid}
        asked = asked_to_leave(jobs, order.priorities)
        running = tuple(job for job in jobs if job.uid in others and job.uid not in asked and not _is_leaving(job))
        staying = {job.uid for job in running}
        held: dict[str, list[Claim]] = {uid: [] for uid in staying}
        leaving: dict[str, list[Claim]] = {}
        for uid, each in _claims(pods, others, overdue_s=settings.node_loss_toleration_s, now=now):
            (held if uid in staying else leaving).setdefault(uid, []).append(each)
        return cls(
            nodes=nodes,
            waiting=tuple(job for job in jobs if job.uid not in promises),
            order=order,
            free=free_room(nodes, pods, others.values()),
            empty=empty,
            asked=asked,
            running=running,
            held={uid: tuple(each) for uid, each in held.items()},
            leaving={uid: tuple(each) for uid, each in leaving.items()},
        )

    def after(self, gone: Iterable[Job], *, kept: Iterable[Claim] = ()) -> Free:
        """Give what is free once these jobs are gone, and all that is leaving by now, but for what is kept."""
        freed = [*chain(*self.leaving.values()), *(each for job in gone for each in self.held[job.uid])]
        return minus(plus(self.free, freed), kept)


def _is_leaving(job: Job) -> bool:
    return job.is_deleting or (job.spec is not None and job.spec.suspend)


def _claims(
    pods: Iterable[Object], promises: Mapping[str, Promise], *, overdue_s: float, now: datetime
) -> Iterable[tuple[str, Claim]]:
    """Give what jobs hold, and what others are giving back; what no one knows the end of is left out."""
    seen = set()
    for pod in pods:
        claimed, own = claim(pod), identity(pod)
        uid, attempt, _ = own
        if claimed is None:
            continue
        seen.add(own)
        is_present = uid in promises and promises[uid].attempt == attempt
        if is_present or (_is_ending(pod, overdue_s=overdue_s, now=now) and not belongs_to_node(pod)):
            yield uid, claimed
    for uid, promise in promises.items():
        for rank, promised in promise.claims.items():
            if (uid, promise.attempt, rank) not in seen:
                yield uid, promised


def _is_ending(pod: Object, *, overdue_s: float, now: datetime) -> bool:
    # A pod that outlives its grace may do so for ever: its node is lost. Nobody may build on its room.
    deleted = pod["metadata"].get("deletionTimestamp")
    return deleted is not None and (now - parse_time(deleted)).total_seconds() <= overdue_s
