"""The proof that a schedule can be played: whole, in order, without deadlock, within its memory.

Deadlock is ruled out under both ways in which sends behave. *Buffered*: a message leaves its rank at once (gloo,
queues). *Rendezvous*: a message leaves only once its receiver has posted the receive, and a rank has the receives of a
link's next `RECEIVES_AHEAD` messages posted, so that a send further ahead holds its rank up.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from itertools import pairwise

from pipelinejob.schedules.actions import (
    GIVES_GRADIENT,
    Action,
    ActionKind,
    Need,
    Producers,
    Schedule,
    ScheduleError,
    needs,
)
from pipelinejob.schedules.memory import peak_activations

_ROUNDING = 1 + 1e-9  # of caps that were divided, as bytes by bytes
RECEIVES_AHEAD = 2  # as the trainer's links have it

_Link = tuple[int, int, int, bool]  # sending rank, receiving rank, sending stage, whether activations


def validate(schedule: Schedule, *, activation_caps: Sequence[float] | None = None) -> None:
    """Prove that a schedule can be played to its end.

    `activation_caps` bounds each rank's `peak_activations`. Raises ScheduleError, naming the rank, the action and what
    is wrong with it, unless every micro-batch meets every stage once, each with one full backward or both halves (or,
    in a schedule of forwards only, none), weight versions are made before they are used, no rank waits for ever, and
    the caps hold.
    """
    _check_stages(schedule)
    _check_whole(schedule)
    _check_versions(schedule)
    producers = Producers(schedule)
    _Play(schedule, producers, is_rendezvous=False).run()
    _Play(schedule, producers, is_rendezvous=True).run()
    _check_caps(schedule, activation_caps)


def is_valid(schedule: Schedule, *, activation_caps: Sequence[float] | None = None) -> bool:
    """Say whether `validate` finds nothing."""
    try:
        validate(schedule, activation_caps=activation_caps)
    except ScheduleError:
        return False
    return True


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


class _Play:
    """Plays the dependencies, without any costs: each rank runs as far as it can, until nothing moves."""

    def __init__(self, schedule: Schedule, producers: Producers, *, is_rendezvous: bool) -> None:
        self._schedule = schedule
        self._producers = producers
        self._is_rendezvous = is_rendezvous
        self._done: set[tuple[int, ActionKind, int, int]] = set()
        self._position = [0] * schedule.num_ranks
        self._unsent: dict[int, Action] = {}  # of each rank that a send holds up, the action whose message it is
        self._links: defaultdict[_Link, deque[int]] = defaultdict(deque)  # micro-batches sent and not yet taken
        self._neighbours = _neighbours(schedule)

    def run(self) -> None:
        awake = set(range(self._schedule.num_ranks))
        while awake:
            rank = awake.pop()
            if self._advance(rank):
                awake |= self._neighbours[rank]
        for rank, actions in enumerate(self._schedule.ranks):
            if self._position[rank] < len(actions):
                raise ScheduleError(self._complaint(rank, actions[self._position[rank]]))

    def _advance(self, rank: int) -> bool:
        """Run a rank as far as it goes; say whether it did anything."""
        actions, moved = self._schedule.ranks[rank], False
        while self._position[rank] < len(actions):
            action = actions[self._position[rank]]
            if rank not in self._unsent:
                if self._missing(rank, action) is not None:
                    break
                self._finish(rank, action)
                moved = True
            if not self._send(rank, action):
                break
            self._position[rank] += 1
            moved = True
        return moved

    def _missing(self, rank: int, action: Action) -> Need | None:
        for need in needs(self._schedule, rank, action, self._producers):
            is_done = (need.rank, *need.action[:3]) in self._done
            if not is_done or self._unsent.get(need.rank) == need.action:
                return need
        return None

    def _finish(self, rank: int, action: Action) -> None:
        self._done.add((rank, *action[:3]))
        for need in needs(self._schedule, rank, action, self._producers):
            if need.rank != rank:
                self._links[self._link(need, rank)].remove(action.micro_batch)

    def _send(self, rank: int, action: Action) -> bool:
        """Let the message of an action leave; say whether it could."""
        target = self._target(rank, action)
        if target is None or target == rank:
            return True
        link = self._link(Need(rank, action), target)
        if self._is_rendezvous and len(self._links[link]) >= RECEIVES_AHEAD:
            self._unsent[rank] = action
            return False
        self._unsent.pop(rank, None)
        self._links[link].append(action.micro_batch)
        return True

    def _target(self, rank: int, action: Action) -> int | None:
        """Give the rank that an action's result goes to; None where nobody needs it."""
        schedule = self._schedule
        if action.kind is ActionKind.FORWARD:
            stage = schedule.stage_of(rank, action)
            return schedule.place_of(action.micro_batch, stage + 1).rank if stage + 1 < schedule.num_stages else None
        if action.kind in GIVES_GRADIENT:
            stage = schedule.stage_of(rank, action)
            return schedule.place_of(action.micro_batch, stage - 1).rank if stage > 0 else None
        return None

    def _link(self, sent: Need, target: int) -> _Link:
        stage = self._schedule.stage_of(sent.rank, sent.action)
        return sent.rank, target, stage, sent.action.kind is ActionKind.FORWARD

    def _complaint(self, rank: int, action: Action) -> str:
        if rank in self._unsent:
            target = self._target(rank, action)
            return (
                f"rank {rank} waits for ever to send what {action} made: rank {target} never takes the messages"
                " before it on that link, and with sends that wait for their receivers nothing moves"
            )
        missing = self._missing(rank, action)
        assert missing is not None, "a rank that waits, waits for something"
        return (
            f"rank {rank} waits for ever before {action}: it needs {missing.action} of rank {missing.rank},"
            " which never ends"
        )


def _neighbours(schedule: Schedule) -> tuple[frozenset[int], ...]:
    """Give the ranks whose waiting a rank can end: those that it sends to, and those that it takes from."""
    pairs = {pair for route in schedule.routes for pair in pairwise(route)}
    return tuple(
        frozenset(other for pair in pairs if rank in pair for other in pair if other != rank)
        for rank in range(schedule.num_ranks)
    )
