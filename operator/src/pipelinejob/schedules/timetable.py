"""When each action starts, every rank working through its list on a device of its own.

The one player of lists at speed: the simulator and the search for schedules both stand on it, in
numbers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

NEVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """Actions as numbers, and the messages between them.

    A job has at most one `source`, whose message it receives, and one `target`; -1 stands for
    none. `links` holds, for each job that sends, the number of the link, the seconds for which the
    message occupies it, and those from then on until the target can start; the number is -1 for
    what stays on its rank.
    """

    rank_of: Sequence[int]
    source: Sequence[int]
    target: Sequence[int]
    links: Sequence[tuple[int, float, float]]
    num_links: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """Each job's start; of jobs whose rank waited for their message to arrive, that moment."""

    started: list[float]
    arrived: dict[int, float]


def timetable(
    jobs: Jobs, lists: Sequence[Sequence[int]], seconds: Sequence[float], *, latency_s: Sequence[float] | None = None
) -> Timetable | None:
    """Return when each job starts, the lists being of all ranks.

    None where ranks wait for each other for ever.

    Receives are posted ahead and sends are asynchronous; with `latency_s`, of each job that sends,
    a rank waits until its message has arrived. Times follow from the lists alone: a link's
    messages leave in the order of their sender's list, so each rank runs on as far as it can.
    """
    rank_of, target, links = jobs.rank_of, jobs.target, jobs.links
    ready = [NEVER if source >= 0 else 0.0 for source in jobs.source]
    link_free = [0.0] * jobs.num_links
    started = [0.0] * len(ready)
    arrived: dict[int, float] = {}
    position, free, waits_for = [0] * len(lists), [0.0] * len(lists), [-1] * len(lists)
    awake = list(range(len(lists)))
    while awake:
        rank = awake.pop()
        order, at, now = lists[rank], position[rank], free[rank]
        waits_for[rank] = -1
        end = len(order)
        while at < end:
            job = order[at]
            if ready[job] > now:
                if ready[job] == NEVER:
                    waits_for[rank] = job
                    break
                now = ready[job]
            started[job] = now
            now += seconds[job]
            at += 1
            receiver = target[job]
            if receiver >= 0:
                link, message_s, lead_s = links[job]
                if link < 0:
                    ready[receiver] = now
                else:
                    link_free[link] = leaves = max(now, link_free[link]) + message_s
                    ready[receiver] = leaves + lead_s
                    if latency_s is not None:
                        arrived[job] = now = leaves + latency_s[job]
                    if waits_for[rank_of[receiver]] == receiver:
                        awake.append(rank_of[receiver])
        position[rank], free[rank] = at, now
    return Timetable(started=started, arrived=arrived) if max(waits_for, default=-1) < 0 else None
