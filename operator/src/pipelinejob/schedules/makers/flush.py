"""GPipe and 1F1B: one stage a rank, full backwards, a flush at the end of each step."""

from pipelinejob.schedules.actions import B, F, RankActions, Schedule, one_route, straight


def gpipe(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Run all forwards, then all backwards: GPipe (Huang et al. 2019, arXiv 1811.06965).

        rank 0  F0 F1 F2 F3 .. .. .. .. .. .. B0 B1 B2 B3
        rank 1  .. F0 F1 F2 F3 .. .. .. .. B0 B1 B2 B3 ..
        rank 2  .. .. F0 F1 F2 F3 .. .. B0 B1 B2 B3 .. ..
        rank 3  .. .. .. F0 F1 F2 F3 B0 B1 B2 B3 .. .. ..

    bubble = (p-1)/(m+p-1); every rank holds all m micro-batches. The paper walks the backwards
    from the last micro-batch to the first; we take them in order, which costs the same and adds
    gradients up in the order 1F1B and an unsplit model do.
    """
    actions = (*map(F, range(num_micro_batches)), *map(B, range(num_micro_batches)))
    return one_route(straight(num_ranks), [actions] * num_ranks, num_micro_batches)


def one_f_one_b(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Alternate forward and backward, once warm: PipeDream-Flush (Narayanan et al. 2021, arXiv 2006.09503).

        rank 0  F0 F1 F2 F3 .. .. .. B0 .. .. .. B1 ...
        rank 1  .. F0 F1 F2 .. .. B0 F3 .. .. B1 ...
        rank 2  .. .. F0 F1 .. B0 F2 .. B1 F3 ...
        rank 3  .. .. .. F0 B0 F1 B1 F2 B2 F3 B3

    Rank i runs p-1-i forwards ahead, so that it holds min(m, p-i) micro-batches, not m; bubble =
    (p-1)/(m+p-1) as GPipe's.
    """
    ranks = [_alternating(num_ranks - 1 - rank, num_micro_batches) for rank in range(num_ranks)]
    return one_route(straight(num_ranks), ranks, num_micro_batches)


def _alternating(ahead: int, num_micro_batches: int) -> RankActions:
    ahead = min(num_micro_batches, ahead)
    pairs = (action for k in range(ahead, num_micro_batches) for action in (F(k), B(k - ahead)))
    return (*map(F, range(ahead)), *pairs, *map(B, range(num_micro_batches - ahead, num_micro_batches)))
