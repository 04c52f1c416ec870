"""Schedules along a V: rank i holds stages i and 2p-1-i, so that the loss is known where the micro-batch came in.

Chunk 0 goes down the ranks, chunk 1 comes back; what a rank holds of both together hardly depends
on the rank.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import accumulate, count

from pipelinejob.schedules.actions import Action, B, F, I, Schedule, W, folded, one_route
from pipelinejob.schedules.makers.building_block import PERIOD, Block, repeated


def zb_v(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Leave no rank waiting within its span, at 1F1B's memory: ZB-V (Qi et al. 2024, arXiv 2401.10241, section 6).

    p = 2, m = 3:

        rank 0  F0 F1 F2 F0.1 I0.1 W0.1 F1.1 I1.1 I0 W1.1 W0 F2.1 I2.1 I1 W2.1 I2 W1 W2
        rank 1  -- F0 F0.1 F1 F1.1 I0.1 I0 W0.1 F2 W0 F2.1 I1.1 I1 I2.1 I2 W1.1 W1 W2.1 W2

    With forward, input gradient and weight gradient equally long, no rank has an empty slot
    between its first and last action from m = 2p-1 on; the ranks begin one after the other, so
    that the step's bubble is (p-1)F/2. Every rank holds p micro-batches.
    """
    block = _block(num_ranks, hops=(4, 2, 4, 2), turns=(1, 1, 1))
    return repeated(block, num_micro_batches, cap=2 * num_ranks)


def v_half(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Hold (p+2)/2 micro-batches on every rank, half of 1F1B's: V-Half (Qi et al. 2024, arXiv 2405.15362).

    Lists are made for equally long forwards, input and weight gradients; with these, bubble =
    (3p-7)F/2 for even p from 4 on, (3p-6)F/2 for odd p from 3 on (1F1B: 3(p-1)F), as long as there
    are enough micro-batches to fill the pipeline.
    """
    wait = 1 if num_ranks % 2 else 4
    block = _block(num_ranks, hops=(2, 1, 2, 1), turns=(1, wait, 2))
    return repeated(block, num_micro_batches, cap=min(2 * num_ranks, num_ranks + 2))


def v_min(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Hold (p+4)/3 micro-batches on every rank, the least there is: V-Min (Qi et al. 2024, arXiv 2405.15362).

    Rounded down to half a micro-batch. Every hop takes one slot, and so does every turn but one
    where 3 divides p. Lists are made for equally long forwards, input and weight gradients, with a
    bubble of about 2pF; with other ones, ranks wait for each other in every round.
    """
    wait = 1 if num_ranks % 3 else 3
    block = _block(num_ranks, hops=(1, 1, 1, 1), turns=(1, wait, 1), with_weights=True)
    return repeated(block, num_micro_batches, cap=min(2 * num_ranks, 2 * (num_ranks + 4) // 3))


def _block(
    num_ranks: int, *, hops: tuple[int, int, int, int], turns: tuple[int, int, int], with_weights: bool = False
) -> Block:
    """Lay out one micro-batch: forwards down the ranks and up again, then gradients down and up.

    `hops` are the slots from one rank to the next on each of the four ways, `turns` those between
    the ways.
    """
    ways = [[hop] * (num_ranks - 1) for hop in hops]
    steps = [*ways[0], turns[0], *ways[1], turns[1], *ways[2], turns[2], *ways[3]]
    slots = tuple(accumulate(steps, initial=0))
    forward, gradient = slots[: 2 * num_ranks], slots[: 2 * num_ranks - 1 : -1]
    route = folded(num_ranks)
    weight = tuple(_weight_slots(num_ranks, forward, gradient)) if with_weights else None
    return Block(route=route, forward=forward, input=gradient, weight=weight)


def _weight_slots(num_ranks: int, forward: tuple[int, ...], gradient: tuple[int, ...]) -> tuple[int, ...]:
    """Return each stage's slot of the weight gradient: the first free one of its rank after the input gradient."""
    slots = [0] * (2 * num_ranks)
    for rank in range(num_ranks):
        stages = (2 * num_ranks - 1 - rank, rank)
        taken = {slot[stage] % PERIOD for slot in (forward, gradient) for stage in stages}
        for stage in stages:
            slots[stage] = next(s for s in count(gradient[stage] + 1) if s % PERIOD not in taken)
            taken.add(slots[stage] % PERIOD)
    return tuple(slots)


def dualpipe_v(num_ranks: int, num_micro_batches: int) -> Schedule:
    """Pair a forward of one chunk with a backward of the other: DualPipeV, one half of DeepSeek's DualPipe.

    DeepSeek-AI 2024, arXiv 2412.19437, section 3.2.1, and github.com/deepseek-ai/DualPipe. A pair
    F B, neighbours here, is one action there, so that the messages of each side travel while the
    other computes. Rank i of p runs, chunk after the letter, micro-batches in order:

        F0                    2(p-1-i) times
        F0 F1                 i+1 times
        I1 W F1               p-1-i times
        F0 B1, F1 B0          m-2p+i+1 times
        B1, F1 B0             p-1-i times
        B1 B0                 i+1 times, the latter half without weight gradients: I, not B
        W I0                  p-1-i times
        W                     i+1 times

    With pairs as one action of length F&B = F + B, bubble = (p-1)(F&B + B - 3W) in times of a
    chunk, B a full backward, as long as W <= F <= I; played singly, as here, it is about half of
    that. Every rank holds p + 1/2 micro-batches. Fewer than 2p micro-batches are played as 2p of
    which the last ones are missing.
    """
    padded = max(num_micro_batches, 2 * num_ranks)
    ranks = [
        [a for a in _numbered(_dualpipe_words(num_ranks, rank, padded)) if a.micro_batch < num_micro_batches]
        for rank in range(num_ranks)
    ]
    return one_route(folded(num_ranks), ranks, num_micro_batches)


def _dualpipe_words(num_ranks: int, rank: int, num_micro_batches: int) -> tuple[str, ...]:
    here, after = rank + 1, num_ranks - 1 - rank
    last = ["B1", "B0"] * here
    return (
        *["F0"] * (2 * after),
        *["F0", "F1"] * here,
        *["I1", "W", "F1"] * after,
        *["F0", "B1", "F1", "B0"] * (num_micro_batches - 2 * num_ranks + here),
        *["B1", "F1", "B0"] * after,
        *last[:here],
        *[word.replace("B", "I") for word in last[here:]],
        *["W", "I0"] * after,
        *["W"] * here,
    )


def _numbered(words: Iterable[str]) -> Iterator[Action]:
    """Yield the words' actions: of each chunk, forwards and gradients by micro-batch.

    Weight gradients as they wait.
    """
    forwards, gradients = (count(), count()), (count(), count())
    waiting: deque[Action] = deque()
    for word in words:
        if word == "W":
            yield waiting.popleft()
            continue
        kind, chunk = word[0], int(word[1])
        if kind == "F":
            yield F(next(forwards[chunk]), chunk)
            continue
        micro_batch = next(gradients[chunk])
        if kind == "I":
            waiting.append(W(micro_batch, chunk))
        yield (I if kind == "I" else B)(micro_batch, chunk)
