"""Interleaved 1F1B and looped breadth-first: several chunks on each rank, along a route that passes all ranks v times.

Stages v times as short make filling and draining v times as short, for v times as many messages.
"""

from collections.abc import Sequence

from pipelinejob.schedules.actions import B, F, RankActions, Schedule, looped, one_route
from pipelinejob.schedules.makers.flush import one_f_one_b

_Work = tuple[int, int]  # micro-batch, chunk


def interleaved_1f1b(num_ranks: int, num_micro_batches: int, num_chunks: int) -> Schedule:
    """Run groups of p micro-batches through one chunk after the other: Narayanan et al. 2021, arXiv 2104.04473.

    p = 2, v = 2, m = 4; a backward takes two forwards' time:

        rank 0  F0 F1 F0.1 F1.1 F2 -- B0.1 F3 B1.1 F2.1 B0 F3.1 B1 B2.1 B3.1 B2 B3
        rank 1  -- F0 F1 F0.1 B0.1 F1.1 B1.1 F2 B0 F3 B1 F2.1 B2.1 F3.1 B3.1 B2 -- B3

    bubble = (p-1)(F+B)/v where p divides m. Rank i runs (v-1)p + 2(p-1-i) chunks ahead, and so
    holds one more than that: p(1 + (p-1)/(pv)) micro-batches on rank 0. One chunk is 1F1B.

    Where p does not divide m, the paper has no schedule. With m mod p <= m // p, so always from m
    = p(p-1) on, we make groups of p+1: the same bubble, and (v-1)/v of a micro-batch more held.
    Else groups are shorter than p, which holds no more and waits longer. As many micro-batches as
    rank 0 may hold anyway are one group.
    """
    if num_chunks == 1:
        return one_f_one_b(num_ranks, num_micro_batches)
    size = _group_size(num_ranks, num_micro_batches, num_chunks)
    groups = _groups(num_micro_batches, size)
    chunks = range(num_chunks)
    forwards = [(k, c) for group in groups for c in chunks for k in group]
    backwards = [(k, c) for group in groups for c in reversed(chunks) for k in group]
    ranks = [
        _alternating(forwards, backwards, ahead=(num_chunks - 1) * size + 2 * (num_ranks - 1 - rank))
        for rank in range(num_ranks)
    ]
    return one_route(looped(num_ranks, num_chunks), ranks, num_micro_batches)


def looped_bfs(num_ranks: int, num_micro_batches: int, num_chunks: int) -> Schedule:
    """Run all micro-batches through one chunk, then through the next: Lamy-Poirier 2023, arXiv 2211.05953.

        rank 0  F0 F1 F0.1 F1.1 -- -- B0.1 B1.1 B0 B1
        rank 1  -- F0 F1 F0.1 F1.1 B0.1 B1.1 B0 B1 --

    bubble = (p-1)(F+B)/v from m = p on; every rank holds all m micro-batches. A chunk's work
    stands together, so that its sharded weights are gathered, and its gradients reduced, once.

    From m = 2p on, the last rank would be m-p messages ahead of the first, which sends to it in
    turn: where sends wait for their receives, they would for ever. So we walk through the chunks
    with groups of p to 2p-1 micro-batches, one group after the other: the same bubble, the same
    memory.
    """
    groups = _groups(num_micro_batches, -(-num_micro_batches // max(1, num_micro_batches // num_ranks)))
    chunks = range(num_chunks)
    forwards = [F(k, c) for group in groups for c in chunks for k in group if k >= 0]
    backwards = [B(k, c) for group in groups for c in reversed(chunks) for k in group if k >= 0]
    return one_route(looped(num_ranks, num_chunks), [[*forwards, *backwards]] * num_ranks, num_micro_batches)


def forward_only(num_ranks: int, num_micro_batches: int, num_chunks: int) -> Schedule:
    """Run forwards alone, in interleaved 1F1B's order; bubble (p-1)F/v where p divides m."""
    return interleaved_1f1b(num_ranks, num_micro_batches, num_chunks).forward_only()


def _group_size(num_ranks: int, num_micro_batches: int, num_chunks: int) -> int:
    """Choose how many micro-batches go through a chunk before the next one's turn comes."""
    held_by_first = (num_chunks - 1) * num_ranks + 2 * (num_ranks - 1) + 1
    if num_micro_batches * num_chunks <= held_by_first:
        return num_micro_batches
    num_groups = num_micro_batches // num_ranks
    return num_ranks + (0 < num_micro_batches % num_ranks <= num_groups)


def _groups(num_micro_batches: int, size: int) -> list[list[int]]:
    """Part micro-batches into groups of `size` turns; -1 is a turn that no micro-batch takes."""
    num_groups = -(-num_micro_batches // size)
    missing, more = divmod(num_groups * size - num_micro_batches, num_groups)
    groups, first = [], 0
    for group in range(num_groups):
        left_out = missing + (group < more)
        groups.append([-1] * left_out + list(range(first, first + size - left_out)))
        first += size - left_out
    return groups


def _alternating(forwards: Sequence[_Work], backwards: Sequence[_Work], *, ahead: int) -> RankActions:
    """Alternate forward and backward, `ahead` forwards before the first backward.

    Then leave out empty turns.
    """
    ahead = min(ahead, len(forwards))
    actions = [F(*work) for work in forwards[:ahead]]
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        actions += F(*forward), B(*backward)
    actions += [B(*work) for work in backwards[len(forwards) - ahead :]]
    return tuple(action for action in actions if action.micro_batch >= 0)
