"""Warm spares: pods kept beside a gang that trains, each of which takes a lost stage's place at once.

A spare is an extra that never keeps a gang waiting: it is given room once the gang trains, and its
node stands in the status before its pod is made. Who is lost, and that a spare takes the place,
`replacing.py` decides.
"""

from dataclasses import replace

from pipelinejob.base import names
from pipelinejob.contract.incarnation import GivenRank
from pipelinejob.spec.job import Mode, PipelineJobSpec
from pipelinejob.spec.reported.conditions import UP
from pipelinejob.spec.reported.recovery_status import RecoveryStatus
from pipelinejob.spec.reported.sparing import Spare
from pipelinejob.spec.status import PipelineJobStatus
from pipelinejob_operator.cluster import Change, Object
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.controller.turns.failing import replacing
from pipelinejob_operator.controller.turns.failing.budget import within
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank, format_time, parse_time
from pipelinejob_operator.objects.making.spares import of_rank
from pipelinejob_operator.objects.pods import StagePod, is_unused_spare

PAUSE_S = 60  # after a spare that failed


def keep(turn: Turn, observed: Observed, spec: PipelineJobSpec, settings: ControllerSettings) -> Turn:
    """See that a gang that trains has as many spares as it asks for, or that its status says why it has fewer."""
    recovery = replacing.recovery_of(turn.status)
    wanted, why_fewer = _wanted(observed, spec, settings)
    if turn.status.state not in UP or recovery.since is not None or recovery.resizing is not None:
        return turn
    if not (wanted or recovery.spares or recovery.fewer_spares or why_fewer):
        return turn
    turn = _without_failed(turn, observed, settings)
    turn = _with_spares(turn, _first(replacing.recovery_of(turn.status).spares, wanted))
    turn, no_room = _placed(turn, observed, wanted)
    return _explained(turn, no_room or why_fewer)


def let_go(turn: Turn) -> Turn:
    """Keep none any more, as the job has ended."""
    recovery = turn.status.recovery
    if recovery is None or not (recovery.spares or recovery.fewer_spares):
        return turn
    return _having(turn, spares=(), fewer_spares=None)


def unmade(job: Job, status: PipelineJobStatus, observed: Observed) -> tuple[Spare, ...]:
    """Return the spares whose pods are to be made: their nodes were looked at again since they were written."""
    known, recovery = replacing.recovery_of(observed.job.status), replacing.recovery_of(status)
    if recovery.replacing or recovery.since is not None or recovery.resizing is not None:
        return ()
    return tuple(each for each in recovery.spares if each in known.spares and _pod(each, job, observed) is None)


def are_made_now(status: PipelineJobStatus, observed: Observed) -> bool:
    """Tell whether what a gang that runs lacks is spares alone, so that a refusal is of one of them."""
    return status.released_time is not None and bool(unmade(observed.job, status, observed))


def refused(turn: Turn, observed: Observed, error: Exception) -> Turn:
    """Go on without the spares that the cluster would not have; it is tried again later."""
    lacking = unmade(turn.job, turn.status, observed)
    kept = tuple(each for each in replacing.recovery_of(turn.status).spares if each not in lacking)
    turn = _having(turn, spares=kept, spare_failed_time=format_time(turn.now))
    return _explained(turn, f"the cluster refused a spare: {error}")


def surplus(status: PipelineJobStatus, observed: Observed) -> tuple[StagePod, ...]:
    """Return spares that are not kept any more, and pods whose place a spare has taken."""
    named = {Rank(each.replica, each.stage): each.pod for each in status.stages}
    kept = {each.number for each in replacing.recovery_of(status).spares}
    taken = {each.pod for each in status.stages}

    def is_surplus(pod: StagePod) -> bool:
        if pod.name in taken:
            return False
        return pod.rank.stage not in kept if is_spare(pod) else pod.rank in named

    own = (pod for pod in observed.pods if pod.attempt == status.attempt)
    return tuple(pod for pod in own if is_surplus(pod))


def is_spare(pod: StagePod) -> bool:
    """Tell whether it is a pod that has not been given a stage's labels yet."""
    return is_unused_spare(pod.raw["metadata"].get("labels") or {})


def given(status: PipelineJobStatus, observed: Observed) -> tuple[tuple[Object, GivenRank], ...]:
    """Return the pods of spares that are to be told whose place they take: until they answer as that rank."""
    answering = {each.stage for each in observed.spares if each.attempt == status.attempt}
    pods = {pod.name: pod for pod in observed.pods}
    return tuple(
        (pods[each.pod].raw, GivenRank(replica=each.replica, stage=each.stage, attempt=status.attempt))
        for each in status.stages
        if each.spare in answering and each.pod in pods
    )


def labelled(status: PipelineJobStatus, observed: Observed) -> tuple[Change, ...]:
    """Return the changes that give spares which took a place the labels of it."""
    pods = {pod.name: pod for pod in observed.pods if pod.attempt == status.attempt and not pod.is_terminating}
    taken = ((pods.get(each.pod), Rank(each.replica, each.stage)) for each in status.stages if each.spare is not None)
    return tuple((pod.raw, of_rank(rank)) for pod, rank in taken if pod is not None and is_spare(pod))


def _wanted(observed: Observed, spec: PipelineJobSpec, settings: ControllerSettings) -> tuple[int, str | None]:
    """Return how many spares are to be kept, and why those are fewer than the spec asks for."""
    asked = spec.recovery.spares
    if settings.keeps_spares or spec.mode is not Mode.TRAIN or not spec.recovery.in_place:
        return 0, None
    if observed.quota is None or (counted := observed.quota.num_spares(len(observed.job.ranks))) >= asked:
        return asked, None
    return counted, (
        f"Kueue's queue {observed.quota.queue} admitted the job with {counted}; set suspend to true, and to false again"
    )


def _without_failed(turn: Turn, observed: Observed, settings: ControllerSettings) -> Turn:
    """Let go of spares that ended or did not come up in time, and note which are ready."""
    spares, failures = list[Spare](), list[str]()
    for each in replacing.recovery_of(turn.status).spares:
        pod = _pod(each, turn.job, observed)
        why = _why_failed(each, pod, turn, settings)
        if why is not None:
            failures.append(f"{names.spare_pod_name(turn.job.key.name, number=each.number)} {why}")
        elif pod is None or not pod.is_terminating:
            spares.append(each.model_copy(update={"ready": pod is not None and pod.is_ready}))
    turn = _with_spares(turn, tuple(spares))
    if not failures:
        return turn
    turn = turn.told("SpareFailed", f"{'; '.join(failures)}; another is made after {PAUSE_S} s", warning=True)
    return _having(turn, spare_failed_time=format_time(turn.now))


def _why_failed(spare: Spare, pod: StagePod | None, turn: Turn, settings: ControllerSettings) -> str | None:
    if pod is not None and pod.outcome is not None and not pod.is_terminating:
        words = (pod.ending and (pod.ending.message or pod.ending.reason)) or "without saying why"
        return f"ended: {pod.refusal or pod.disruption or words}"
    waited_s = (turn.now - parse_time(spare.since)).total_seconds()
    if spare.ready or (pod is not None and pod.is_ready) or waited_s < settings.start_timeout_s:
        return None
    return f"was not ready within {settings.start_timeout_s:.0f} s"


def _placed(turn: Turn, observed: Observed, wanted: int) -> tuple[Turn, str | None]:
    """Give nodes to spares that have none, and look again at those that have no pod yet.

    Where there was no room, it is looked for again as often as progress is written.
    """
    recovery = replacing.recovery_of(turn.status)
    waiting = [each.number for each in recovery.spares if _pod(each, turn.job, observed) is None]
    missing = wanted - len(recovery.spares)
    failed = recovery.spare_failed_time
    is_pausing = failed is not None and bool(within([failed], PAUSE_S, turn.now))
    if missing <= 0 and not waiting:
        return turn, None
    if not waiting and (is_pausing or (recovery.fewer_spares is not None and not observed.progress)):
        return turn, recovery.fewer_spares
    numbers = [*waiting, *_free_numbers(0 if is_pausing else max(0, missing), turn.job, observed, recovery)]
    found = observed.spare_places(numbers)
    places = {} if isinstance(found, str) else found
    before = {each.number: each for each in recovery.spares}
    now = format_time(turn.now)
    new = tuple(
        Spare(
            number=number,
            node=place.node,
            path="/".join(place.path),
            since=before[number].since if number in before else now,
        )
        for number, place in sorted(places.items())
    )
    kept = tuple(each for each in recovery.spares if each.number not in waiting)
    turn = _with_spares(turn, (*kept, *new))
    if len(kept) + len(new) >= wanted or is_pausing:
        return turn, recovery.fewer_spares if is_pausing else None
    return turn, found if isinstance(found, str) else "no node has room for more now"


def _free_numbers(count: int, job: Job, observed: Observed, recovery: RecoveryStatus) -> list[int]:
    """Return the first numbers of which no pod is named, whosever it is now."""
    taken, found, number = {pod.name for pod in observed.pods}, list[int](), 0
    taken |= {names.spare_pod_name(job.key.name, number=each.number) for each in recovery.spares}
    while len(found) < count:
        if names.spare_pod_name(job.key.name, number=number) not in taken:
            found.append(number)
        number += 1
    return found


def _explained(turn: Turn, why_fewer: str | None) -> Turn:
    before = replacing.recovery_of(turn.status).fewer_spares
    if why_fewer == before:
        return turn
    turn = _having(turn, fewer_spares=why_fewer and why_fewer[:1024])
    if why_fewer is None or before is not None:
        return turn
    message = f"fewer spares are kept than spec.recovery.spares: {why_fewer}; a replacement starts cold until then"
    return turn.told("NoSpares", f"F{message[1:]}", warning=True)


def _first(spares: tuple[Spare, ...], count: int) -> tuple[Spare, ...]:
    """Return so many of them, first those that are ready."""
    chosen = {each.number for each in sorted(spares, key=lambda each: (not each.ready, each.number))[:count]}
    return tuple(each for each in spares if each.number in chosen)


def _pod(spare: Spare, job: Job, observed: Observed) -> StagePod | None:
    name = names.spare_pod_name(job.key.name, number=spare.number)
    own = (pod for pod in observed.pods if pod.attempt == job.status.attempt)
    return next((pod for pod in own if pod.name == name), None)


def _with_spares(turn: Turn, spares: tuple[Spare, ...]) -> Turn:
    return turn if spares == replacing.recovery_of(turn.status).spares else _having(turn, spares=spares)


def _having(turn: Turn, **changes: object) -> Turn:
    recovery = replacing.recovery_of(turn.status).model_copy(update=changes)
    return replace(turn, status=turn.status.model_copy(update={"recovery": recovery}))
