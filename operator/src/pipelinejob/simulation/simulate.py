"""Plays a schedule on the clock of its predicted costs: when an action runs, why a rank waits, how long a step is.

Exact for its model: a rank runs one action at a time in its list's order; receives are posted
ahead and sends are asynchronous, so that a message leaves when its action ends, crosses its link
(one message at a time each way, then the latency), and waits at the other side until it is wanted.
What of a backward pass needs no gradient is done while the rank waits for that one. Without
`overlap` a rank does nothing else until its message has arrived. Ranks either have a device each,
or share one node's `concurrency` k by processor sharing: while n > k of them compute, each has a
processor for k/n of the time, and waits for one the rest.
"""

from collections.abc import Sequence

from pipelinejob.schedules.actions import ActionKind, Schedule
from pipelinejob.schedules.costs import Costs
from pipelinejob.simulation.clock import ProcessorSharing, Program, play_apart, shared_rate
from pipelinejob.simulation.result import Simulation


def simulate(
    schedule: Schedule,
    costs: Costs,
    *,
    overlap: bool = True,
    concurrency: float | None = None,
    slowdowns: Sequence[float] | None = None,
    reduction_s: Sequence[float] = (),
    barrier_s: float = 0.0,
    optimizer_s: Sequence[float] = (),
) -> Simulation:
    """Predict one step; the schedule must be valid (`validate`).

    `slowdowns` multiplies the seconds of each rank (a straggler). `reduction_s` is what summing a
    stage's gradients over replicas takes, stage by stage; a rank sums a chunk's as soon as its
    last gradient is there, while it computes on. `barrier_s` is the global norm's all-reduce;
    `optimizer_s` each rank's update, after the barrier or, in an asynchronous schedule, at each
    `O` action. `overlap` False (a rank waits for its messages to arrive) goes with a device for
    each rank only. Raises ScheduleError where ranks wait for each other for ever.
    """
    program = Program(schedule, costs, slowdowns, optimizer_s if schedule.is_asynchronous else ())
    if concurrency is None or concurrency >= schedule.num_ranks:
        play = play_apart(program, overlap=overlap)
    else:
        play = ProcessorSharing(program, concurrency).run()
    makespan_s = max(play.ended, default=0.0)
    sent = play.sent if not overlap else play.ended
    updates = tuple(optimizer_s) if optimizer_s and not schedule.is_asynchronous else (0.0,) * schedule.num_ranks
    reduced = tuple(reduced_s(schedule, rank, program.of_rank(play.ended, rank), reduction_s)
                    for rank in range(schedule.num_ranks))  # fmt: skip
    last_sent = max(sent, default=0.0)
    return Simulation(
        schedule=schedule,
        started_s=program.by_rank(play.started),
        ended_s=program.by_rank(play.ended),
        ahead_s=program.by_rank(play.ahead),
        waited_s=program.by_rank(play.waited),
        sent_s=program.by_rank(sent),
        makespan_s=max(makespan_s, last_sent),
        reduced_s=reduced,
        step_s=max(makespan_s, last_sent, *reduced) + barrier_s + shared_seconds(updates, concurrency),
        optimizer_s=_stretched(updates, concurrency),
    )


def shared_seconds(work_s: Sequence[float], concurrency: float | None) -> float:
    """Return the time until all ranks that start together have done their work on the shared devices."""
    if concurrency is None:
        return max(work_s)
    now = done = 0.0
    for ended, work in enumerate(sorted(work_s)):
        now += (work - done) / shared_rate(len(work_s) - ended, concurrency)
        done = work
    return now


def _stretched(work_s: tuple[float, ...], concurrency: float | None) -> tuple[float, ...]:
    """Return each rank's seconds for work that all start together: ranks that share a node slow down alike."""
    longest = max(work_s)
    stretch = shared_seconds(work_s, concurrency) / longest if longest else 1.0
    return tuple(work * stretch for work in work_s)


def reduced_s(schedule: Schedule, rank: int, ended: Sequence[float], reduction_s: Sequence[float]) -> float:
    """Return when a rank's gradients are summed over replicas.

    A chunk's, once its last gradient is computed.
    """
    if not reduction_s:
        return 0.0
    last: dict[int, float] = {}
    for action, end in zip(schedule.ranks[rank], ended, strict=True):
        if action.kind in {ActionKind.BACKWARD, ActionKind.WEIGHT}:
            last[schedule.stage_of(rank, action)] = end
    now = 0.0
    for stage, end in sorted(last.items(), key=lambda item: item[1]):
        now = max(now, end) + reduction_s[stage]
    return now
