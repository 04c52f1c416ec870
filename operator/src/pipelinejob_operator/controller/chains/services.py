"""One pass over a job that serves: its chains seen, the next moves decided, made, and told in its status.

A chain is a job of its own, so that it is placed, watched and restarted as any other; here is only
decided which there are. What is done is told after it was done, for nothing is fenced by this
status.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pipelinejob.base import names
from pipelinejob.base.errors import SpecError
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob_operator.cluster import Cluster, ForbiddenError, InvalidError, NameTakenError, Object, Reference
from pipelinejob_operator.controller.chains import turn as turns
from pipelinejob_operator.controller.chains.moves import Moves, everyone_leaves, next_moves
from pipelinejob_operator.controller.chains.observing import Seen, see
from pipelinejob_operator.controller.looking_again import seconds_to_deadline, seconds_to_live
from pipelinejob_operator.controller.status_writing import StatusWriter
from pipelinejob_operator.controller.turns import transitions
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.conditions import Fact
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job
from pipelinejob_operator.objects.making.chains import BUDGET, budget, chain
from pipelinejob_operator.objects.making.manifests import front_service
from pipelinejob_operator.objects.ownership import NAMES_TAKEN, Obstacle, describe, obstacle

_SERVICE = "Service"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What one pass does: deletions come first."""

    apply: tuple[Object, ...] = ()
    delete: tuple[Reference, ...] = ()


class Services:
    """Keeps jobs that serve at the chains that their specs ask for."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        settings: ControllerSettings,
        statuses: StatusWriter,
        errors: Callable[[Object], Sequence[SpecError]],
        clock: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._statuses = statuses
        self._errors = errors
        self._clock = clock

    async def reconcile(self, job: Job) -> float | None:
        """Bring a job that serves closer to its spec; return the seconds after which it is to be looked at again."""
        spec, now = job.spec, self._clock()
        assert spec is not None, "only readable jobs serve"
        if job.is_deleting:  # its chains go with it, by their owner references
            return None
        turn, seen = Turn(job=job, now=now, status=job.status), see(self._cluster, job, spec, now)
        if job.is_finished:
            return await self._after_the_end(turn, seen, spec)
        ended = _ended(turn, seen, spec, self._errors(job.raw))
        if ended is not None:
            await self._write(ended)
            return 0.0
        moves = _moves(seen, spec)
        trouble = await self._carry_out(_of(job, seen, spec, moves))
        moves = Moves() if trouble else moves
        turn = turns.tell_moves(turn, moves)
        if spec.suspend:
            turn = turns.suspended(turn, seen)
        else:
            turn = turns.serve(turns.resumed(turn), seen, spec, moves, trouble=trouble)
        await self._write(turn)
        return min(self._looks(turn, seen, spec, trouble), default=None)

    async def _carry_out(self, what: _Pass) -> Fact | None:
        """Do it; return what the cluster refused, if it did."""
        for reference in what.delete:
            await self._cluster.delete(reference)
        taken = await self._taken(what.apply)
        if taken:
            return Fact(not all(each.is_leaving for each in taken), NAMES_TAKEN, describe(taken))
        try:
            for item in what.apply:
                await self._cluster.apply(item)
        except (ForbiddenError, InvalidError, NameTakenError) as error:
            reason = NAMES_TAKEN if isinstance(error, NameTakenError) else "Refused"
            return Fact(True, reason, f"the cluster refused a part of the service: {error}")
        return None

    async def _taken(self, items: Sequence[Object]) -> list[Obstacle]:
        """Look, before anything new is made, whether another's stands under a name that it needs."""
        found = []
        for item in items:
            metadata = item["metadata"]
            if "uid" not in metadata:
                stands = await self._cluster.look_up(item["kind"], metadata["namespace"], metadata["name"])
                owner = metadata["ownerReferences"][0]
                if stands is not None:
                    found.append(obstacle({"kind": item["kind"], **stands}, uid=owner["uid"], name=owner["name"]))
        return [each for each in found if each is not None]

    async def _write(self, turn: Turn) -> None:
        if await self._statuses.write(turn.job, turn.status):
            for event in turn.events:
                await self._cluster.emit(turn.job.raw, event)

    async def _after_the_end(self, turn: Turn, seen: Seen, spec: PipelineJobSpec) -> float | None:
        for job in seen.jobs.values():
            if not (job.is_deleting or job.is_finished):  # one that has failed holds nothing and keeps its logs
                await self._cluster.delete(_reference(job))
        if spec.ttl_seconds_after_finished is None:
            return None
        left = seconds_to_live(turn, spec.ttl_seconds_after_finished)
        if left <= 0:
            await self._cluster.delete(_reference(turn.job))
        return max(0.0, left)

    def _looks(self, turn: Turn, seen: Seen, spec: PipelineJobSpec, trouble: Fact | None) -> Iterator[float]:
        """When to look again if no change of a chain tells of anything."""
        if spec.active_deadline_seconds is not None:
            yield max(0.0, seconds_to_deadline(turn, spec, default=0.0))
        if trouble is not None or not all(each.is_ready and each.is_current for each in seen.chains):
            yield self._settings.waiting_retry_s


def _ended(turn: Turn, seen: Seen, spec: PipelineJobSpec, errors: Sequence[SpecError]) -> Turn | None:
    """End a job that cannot go on; None if it can."""
    if errors and not seen.chains:
        return transitions.fail(turn, "InvalidSpec", "\n".join(map(str, errors)), stalled=True)
    if not spec.suspend and turns.is_overdue(turn, spec):
        return turns.overdue(turn, spec)
    if not spec.suspend and seen.chains and turns.is_hopeless(seen, spec.parallelism.data):
        return turns.give_up(turn, seen)
    return None


def _moves(seen: Seen, spec: PipelineJobSpec) -> Moves:
    if spec.suspend:
        return everyone_leaves(seen.chains)
    surge, unavailable = turns.rolling(spec)
    return next_moves(seen.chains, wanted=spec.parallelism.data, surge=surge, unavailable=unavailable)


def _of(job: Job, seen: Seen, spec: PipelineJobSpec, moves: Moves) -> _Pass:
    """Return what the moves mean, with what is missing beside the chains."""
    kept = [each for each in moves.remove if not seen.of(each).is_deleting]
    return _Pass(
        delete=tuple(_reference(seen.of(each)) for each in kept),
        apply=(
            *_furniture(job, seen, spec, moves),
            *(chain(job, spec, number=number) for number in moves.begin),
            *(_leaving(seen.of(each)) for each in moves.drain),
        ),
    )


def _furniture(job: Job, seen: Seen, spec: PipelineJobSpec, moves: Moves) -> Iterator[Object]:
    front, found = front_service(job, spec), seen.furniture
    if front is not None and _SERVICE not in found:
        yield front
    num_chains = sum(each.stays for each in seen.chains) + len(moves.begin) - len(moves.drain)
    wanted = budget(job, spec, num_chains=num_chains)
    stands = found.get(BUDGET)
    if stands is None:
        yield wanted
    elif stands["spec"]["minAvailable"] != wanted["spec"]["minAvailable"]:
        metadata = {**wanted["metadata"], "uid": stands["metadata"]["uid"]}
        yield {**wanted, "metadata": metadata, "spec": {"minAvailable": wanted["spec"]["minAvailable"]}}


def _leaving(job: Job) -> Object:
    """Ask a chain to end the answers in work, and stop."""
    metadata = {key: job.raw["metadata"][key] for key in ("name", "namespace", "uid")}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": metadata,
        "spec": {**job.raw["spec"], "suspend": True},
    }


def _reference(job: Job) -> Reference:
    return Reference(kind=names.KIND, namespace=job.key.namespace, name=job.key.name, uid=job.uid)
