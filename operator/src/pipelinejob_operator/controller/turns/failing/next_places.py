"""The next pods of lost ranks, in the status: on which nodes, and of which spares."""

from collections.abc import Mapping

from pipelinejob.base import names
from pipelinejob.spec.reported.sparing import Spare
from pipelinejob.spec.reported.stage_status import StageStatus
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.admission.pods.substitute import Place
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.job import Rank


def placed_anew(turn: Turn, places: Mapping[Rank, Place]) -> tuple[StageStatus, ...]:
    """Count a restart of each of these ranks, and write where it goes, and which pod it is then."""
    job = turn.job.key.name

    def changed(each: StageStatus, place: Place | None) -> StageStatus:
        if place is None:
            return each
        path = each.path if each.node == place.node else "/".join(place.path)
        update = {"restarts": each.restarts + 1, "ready": False, "node": place.node, "path": path}
        update |= {"restarts_when_well": None}  # the next pod's container begins to count anew
        own = names.pod_name(job, replica=each.replica, stage=each.stage)
        pod = own if place.spare is None else names.spare_pod_name(job, number=place.spare)
        return each.model_copy(update=update | {"pod": pod, "spare": place.spare})

    return tuple(changed(each, places.get(Rank(each.replica, each.stage))) for each in turn.status.stages)


def unused(spares: tuple[Spare, ...], places: Mapping[Rank, Place]) -> tuple[Spare, ...]:
    """Return the spares that take none of these places."""
    used = {place.spare for place in places.values()}
    return tuple(each for each in spares if each.number not in used)


def moves(places: Mapping[Rank, Place], turn: Turn) -> str:
    """Say which spares take these places, and which are on other nodes than before, to go behind a name."""
    job, status = turn.job.key.name, turn.status
    spares = [names.spare_pod_name(job, number=each.spare) for each in places.values() if each.spare is not None]
    moved = [
        f"{place.node} instead of {before}"
        for rank, place in sorted(places.items())
        if place.node != (before := node_of(rank, status))
    ]
    by = f", by {' and '.join(sorted(spares))}" if spares else ""
    return by + (f" (on {', '.join(moved)})" if moved else "")


def node_of(rank: Rank, status: PipelineJobStatus) -> str | None:
    """Return the node that the status gives a rank."""
    return next((each.node for each in status.stages if (each.replica, each.stage) == rank), None)
