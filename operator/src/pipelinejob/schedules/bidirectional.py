"""Chimera and DualPipe: two routes over the same stages, so that micro-batches enter the pipeline at both ends.

Each stage stands on two ranks, i and p-1-i, each with a copy of its weights: twice the memory for weights, and
gradients are summed over both copies. p must be even.
"""

from pipelinejob.schedules.actions import Action, B, F, I, Route, Schedule, ScheduleError, W, straight
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.unit_time import Candidate, play_rule


def chimera(setting: Setting) -> Schedule:
    """Let 1F1B run from both ends at once: Chimera (Li and Hoefler 2021, SC, arXiv 2107.06925).

        rank 0  F0 F2 .. F1 B1 F3 B3 B0 .. B2     route 0: 0 1 2 3, micro-batches 0 2
        rank 1  .. F0 F1 F2 F3 B1 B0 B3 B2 ..     route 1: 3 2 1 0, micro-batches 1 3
        rank 2  .. F1 F0 F3 F2 B0 B1 B2 B3 ..
        rank 3  F1 F3 .. F0 B0 F2 B2 B1 .. B3

    bubble = (p-2)/(2m+p-2) where a backward is as long as a forward, for any m that is a multiple of p; where it is
    twice as long, (p-2)/(3m/2+p-2) for m = p. Rank i holds p/2+1+i of p micro-batches, at most p. Micro-batches take
    the routes by turns, and a rank prefers the backward of the oldest micro-batch to any forward.
    """
    p, m = setting.num_ranks, setting.num_micro_batches
    there, back = _routes(p, "Chimera")
    schedule = play_rule(
        (there, back), tuple(k % 2 for k in range(m)), _oldest_backward_first, caps=[p] * p, forward=1, backward=1
    )
    assert schedule is not None, "the oldest micro-batch of either route always has room ahead"
    return schedule


def _oldest_backward_first(candidate: Candidate) -> tuple[int, ...]:
    return (candidate.is_forward, candidate.micro_batch, -candidate.stage)


def dualpipe(setting: Setting) -> Schedule:
    """Pair forwards of one direction with backwards of the other: DualPipe (DeepSeek-V3, arXiv 2412.19437, fig. 5).

    Weight gradients are put off at both ends only. bubble = (p/2-1)(F&B + B - 3W), B being a full backward and F&B a
    forward and a backward that overlap; a pair whose parts run one after the other and need not wait for each other's
    input has (p/2-1)(F+I-W), less by (p/2-1)I than the formula with F&B = F+B. Every rank holds p+1 micro-batches.
    m must be even and at least 2p.
    """
    p, m = setting.num_ranks, setting.num_micro_batches
    routes = _routes(p, "DualPipe")
    if m % 2 or m < 2 * p:
        raise ScheduleError(
            f"{m} micro-batches cannot fill DualPipe on {p} ranks; use an even number, at least {2 * p}, or Chimera"
        )
    ends = (range(m // 2), range(m // 2, m))
    ranks = tuple(_Pairing(p, rank, ends).actions() for rank in range(p))
    return Schedule(routes=routes, route_of=(0,) * (m // 2) + (1,) * (m // 2), ranks=ranks)


class _Pairing:
    """One rank's list, in the paper's eight phases. `near` micro-batches enter at the rank's own half, `far` ones not.

    Of a pipeline's half of h ranks this is the i-th from its end; a phase that fills lets forwards run ahead, i.e. more
    of them at the end than in the middle.
    """

    def __init__(self, num_ranks: int, rank: int, ends: tuple[range, range]) -> None:
        self._num_ranks = num_ranks
        self._inward = min(rank, num_ranks - 1 - rank)
        near, far = ends if rank < num_ranks // 2 else ends[::-1]
        self._forwards = {"near": iter(near), "far": iter(far)}
        self._backwards = {"near": iter(near), "far": iter(far)}
        self._each = len(near)
        self._actions: list[Action] = []
        self._put_off: list[Action] = []

    def actions(self) -> tuple[Action, ...]:
        inward, outward = self._inward + 1, self._num_ranks // 2 - self._inward - 1
        for _ in range(2 * outward):
            self._forward("near")
        for _ in range(inward):
            self._forward("near")
            self._forward("far")
        for _ in range(outward):
            self._input_gradient("far")
            self._weight_gradient()
            self._forward("far")
        for _ in range(self._each - self._num_ranks + inward):
            self._pair("near", "far")
            self._pair("far", "near")
        for _ in range(outward):
            self._backward("far")
            self._pair("far", "near")
        self._drain(inward)
        for _ in range(outward):
            self._weight_gradient()
            self._input_gradient("near")
        while self._put_off:
            self._weight_gradient()
        return tuple(self._actions)

    def _drain(self, inward: int) -> None:
        """Run 2 * inward backwards, by turns from both ends; the later half puts its weight gradients off."""
        for number in range(2 * inward):
            end = "near" if number % 2 else "far"
            if number < inward:
                self._backward(end)
            else:
                self._input_gradient(end)

    def _pair(self, forward: str, backward: str) -> None:
        self._forward(forward)
        self._backward(backward)

    def _forward(self, end: str) -> None:
        self._actions.append(F(next(self._forwards[end])))

    def _backward(self, end: str) -> None:
        self._actions.append(B(next(self._backwards[end])))

    def _input_gradient(self, end: str) -> None:
        micro_batch = next(self._backwards[end])
        self._actions.append(I(micro_batch))
        self._put_off.append(W(micro_batch))

    def _weight_gradient(self) -> None:
        self._actions.append(self._put_off.pop(0))


def _routes(num_ranks: int, name: str) -> tuple[Route, Route]:
    if num_ranks % 2:
        raise ScheduleError(f"{name} runs from both ends and needs an even number of ranks, not {num_ranks}")
    there = straight(num_ranks)
    return there, there[::-1]
