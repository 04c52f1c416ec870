"""The proof that a schedule can be played: whole, in order, without deadlock, within its memory.

Deadlock is ruled out under both ways in which sends behave. *Buffered*: a message leaves its rank
at once (gloo, queues). *Rendezvous*: a message leaves only once its receiver has posted the
receive, and a rank has the receives of a link's next two messages posted
(`deadlock.RECEIVES_AHEAD`), so that a send further ahead holds its rank up.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from pipelinejob.schedules.actions import Action, ActionKind, Schedule, ScheduleError, Wiring
from pipelinejob.schedules.deadlock import RECEIVES_AHEAD, Stuck, deadlock
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.timetable import NEVER, Jobs

_ROUNDING = 1 + 1e-9  # of caps that were divided, as bytes by bytes
_OWN_NEED = {
    ActionKind.BACKWARD: ActionKind.FORWARD,
    ActionKind.INPUT: ActionKind.FORWARD,
    ActionKind.WEIGHT: ActionKind.INPUT,
}


def validate(schedule: Schedule, *, activation_caps: Sequence[float] | None = None) -> None:
    """Prove that a schedule can be played to its end.

    `activation_caps` bounds each rank's `peak_activations`. Raises ScheduleError, naming the rank,
    the action and what is wrong with it, unless every micro-batch meets every stage once, each
    with one full backward or both halves (or, in a schedule of forwards only, none), weight
    versions are made before they are used, no rank waits for ever, and the caps hold.
    """
    _check_stages(schedule)
    _check_whole(schedule)
    _check_versions(schedule)
    _check_order(schedule)
    _check_caps(schedule, activation_caps)


def _check_stages(schedule: Schedule) -> None:
    for rank, actions in enumerate(schedule.ranks):
        for action in actions:
            if action.kind is ActionKind.UPDATE:
                continue
            if action.micro_batch >= schedule.num_micro_batches:
                raise ScheduleError(
                    f"rank {rank}: {action} is of a micro-batch that does not exist; they are 0 to"
                    f" {schedule.num_micro_batches - 1}"
                )
            chunks = len(schedule.stages_of[schedule.route_of[action.micro_batch]][rank])
            if action.chunk >= chunks:
                raise ScheduleError(
                    f"rank {rank}: {action} is on chunk {action.chunk}, but the route of its micro-batch gives this"
                    f" rank {chunks} chunk{'s' * (chunks != 1)}; chunks count from 0"
                )


def _check_whole(schedule: Schedule) -> None:
    for rank, actions in enumerate(schedule.ranks):
        counts = Counter((a.kind, a.micro_batch, a.chunk) for a in actions)
        for micro_batch, route in enumerate(schedule.route_of):
            for chunk in range(len(schedule.stages_of[route][rank])):
                _check_once(rank, micro_batch, chunk, counts, is_forward_only=schedule.is_forward_only)


def _check_once(
    rank: int,
    micro_batch: int,
    chunk: int,
    counts: Counter[tuple[ActionKind, int, int]],
    *,
    is_forward_only: bool,
) -> None:
    forwards, backwards, inputs, weights = (
        counts[kind, micro_batch, chunk]
        for kind in (ActionKind.FORWARD, ActionKind.BACKWARD, ActionKind.INPUT, ActionKind.WEIGHT)
    )
    forward = Action(ActionKind.FORWARD, micro_batch, chunk)
    if forwards != 1:
        raise ScheduleError(f"rank {rank} runs {forward} {forwards} times; it must run it once")
    if is_forward_only:
        return
    if (backwards, inputs, weights) not in {(1, 0, 0), (0, 1, 1)}:
        full, half, other = (
            forward._replace(kind=kind) for kind in (ActionKind.BACKWARD, ActionKind.INPUT, ActionKind.WEIGHT)
        )
        raise ScheduleError(
            f"rank {rank} runs {full} {backwards} times, {half} {inputs} times and {other} {weights} times; after"
            f" {forward} it must run {full} once, or {half} and {other} once each"
        )


def _check_versions(schedule: Schedule) -> None:
    for rank, actions in enumerate(schedule.ranks):
        newest = 0
        forward_version: dict[tuple[int, int], int | None] = {}
        for action in actions:
            if action.kind is ActionKind.UPDATE:
                if action.micro_batch != newest + 1:
                    raise ScheduleError(f"rank {rank}: {action} follows version {newest}; it must be O{newest + 1}")
                newest += 1
                continue
            if action.version is not None and action.version > newest:
                raise ScheduleError(f"rank {rank}: {action} uses a version that no update before it has made")
            if (action.version is None) == schedule.is_asynchronous and not schedule.is_forward_only:
                rule = "must name its weight version" if schedule.is_asynchronous else "names one of several versions"
                raise ScheduleError(f"rank {rank}: {action} {rule}: the schedule has {newest} updates before it")
            key = (action.micro_batch, action.chunk)
            if forward_version.setdefault(key, action.version) != action.version:
                raise ScheduleError(
                    f"rank {rank}: {action} must use version {forward_version[key]}, which its forward used"
                )


def _check_caps(schedule: Schedule, caps: Sequence[float] | None) -> None:
    for rank, (peak, cap) in enumerate(zip(peak_activations(schedule), caps or (), strict=bool(caps))):
        if peak > cap * _ROUNDING:
            raise ScheduleError(f"rank {rank} holds the activations of {peak:g} micro-batches; its cap is {cap:g}")


def _check_order(schedule: Schedule) -> None:
    """Raise ScheduleError if a rank waits for ever, however sends behave."""
    wiring = schedule.wiring
    lists = [range(first, end) for first, end in pairwise(wiring.offsets)]
    jobs = Jobs(
        rank_of=wiring.rank_of,
        source=wiring.source,
        target=wiring.target,
        links=[(number, 0.0, 0.0) for number in wiring.link_of],
        num_links=len(wiring.links),
    )
    channels = _channels(wiring)
    too_late = _too_late(schedule)
    for ahead in (NEVER, RECEIVES_AHEAD):
        stuck = deadlock(jobs, lists, channels, ahead=ahead, never=frozenset(too_late))
        if stuck is not None:
            raise ScheduleError(_complaint(schedule, stuck, too_late))


def _too_late(schedule: Schedule) -> dict[int, Action]:
    """Return what each action (by number) needs that stands after it in its own rank's list.

    A gradient needs its own forward; a weight gradient its own input gradient.
    """
    found: dict[int, Action] = {}
    for first, actions in zip(schedule.wiring.offsets, schedule.ranks, strict=False):
        done: set[Action] = set()
        for number, action in enumerate(actions, start=first):
            need = _OWN_NEED.get(action.kind)
            wanted = action._replace(kind=need or action.kind, version=None)
            if need is not None and wanted not in done:
                found[number] = wanted._replace(version=action.version)
            done.add(action._replace(version=None))
    return found


def _channels(wiring: Wiring) -> list[int]:
    """Return each action's channel: messages of the same link, stage and direction.

    -1 for what stays on its rank.
    """
    numbers: dict[tuple[int, int, bool], int] = {}
    channels = []
    for link, work in zip(wiring.link_of, wiring.work_of, strict=True):
        _, kind, stage = wiring.works[work]
        key = (link, stage, kind is ActionKind.FORWARD)
        channels.append(numbers.setdefault(key, len(numbers)) if link >= 0 else -1)
    return channels


def _complaint(schedule: Schedule, stuck: Stuck, too_late: Mapping[int, Action]) -> str:
    wiring, rank = schedule.wiring, stuck.rank
    action = _action(schedule, stuck.job)
    if stuck.is_sending:
        return (
            f"rank {rank} waits for ever to send what {action} made: rank {wiring.rank_of[wiring.target[stuck.job]]}"
            " never takes the messages before it on that link, and with sends that wait for their receivers nothing"
            " moves"
        )
    own, source = too_late.get(stuck.job), wiring.source[stuck.job]
    other, missing = (rank, own) if own is not None else (wiring.rank_of[source], _action(schedule, source))
    return f"rank {rank} waits for ever before {action}: it needs {missing} of rank {other}, which never ends"


def _action(schedule: Schedule, number: int) -> Action:
    rank = schedule.wiring.rank_of[number]
    return schedule.ranks[rank][number - schedule.wiring.offsets[rank]]
