"""Hanayo's waves: one route that runs up and down the ranks, several times."""

from pipelinejob.schedules.actions import Action, B, F, Schedule, ScheduleError, folded, one_route


def hanayo(num_ranks: int, num_micro_batches: int, num_chunks: int) -> Schedule:
    """Send units of p micro-batches along w waves: Liu et al. 2023, arXiv 2308.15762.

    A wave is two chunks a rank.

    p = 2, w = 1, m = 2, a backward as long as a forward:

        rank 0  F0 F1 -- F0.1 B0.1 F1.1 B1.1 B0 -- B1
        rank 1  -- F0 F0.1 F1 F1.1 B0.1 B0 B1.1 B1 --

    Micro-batch j of a unit passes stage s, forward, in slot s + 2j and, backward, in slot 2S - 1 -
    s + 2j, where S = 2wp; the next unit follows 4wp slots later. On no rank do two fall together.
    With backward and forward equally long, p dividing m, bubble = (p-1)F/w, a 2w-th of 1F1B's.
    With backward twice as long it is (m/p + 1)(p-1)F/w: then units leave gaps. Rank i holds p -
    (p-1-i)/(2w) micro-batches. Where p does not divide m, the last unit is shorter.

    Raises ScheduleError for an odd number of chunks.
    """
    if num_chunks % 2:
        raise ScheduleError(
            f"{num_chunks} chunks on a rank are no whole waves, which are 2 each; use {num_chunks + 1},"
            " or Interleaved1F1B"
        )
    route = folded(num_ranks, num_chunks - 1)
    num_stages = len(route)
    slots: list[list[tuple[int, Action]]] = [[] for _ in range(num_ranks)]
    for micro_batch in range(num_micro_batches):
        unit, number = divmod(micro_batch, num_ranks)
        first = 2 * number + 2 * num_stages * unit
        for stage, rank in enumerate(route):
            chunk = stage // num_ranks
            slots[rank].append((first + stage, F(micro_batch, chunk)))
            slots[rank].append((first + 2 * num_stages - 1 - stage, B(micro_batch, chunk)))
    return one_route(route, [[action for _, action in sorted(each)] for each in slots], num_micro_batches)
