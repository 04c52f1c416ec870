"""Chooses what a manifest leaves open: degrees, devices along the pipeline, schedule, micro-batches, recomputation.

Options are looked at in the order of a guess, the most promising first; each is planned and
simulated exactly as `planner.make_plan` would, unless a lower bound already says that it cannot
win. When nothing is left whose bound is below the best found, that is the best there is; a search
that would take too long ends before, and says so. Where the schedule is `auto`, the best
configurations get one that is searched for, too.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipelinejob.base.errors import SpecError, TooLargeError
from pipelinejob.costs.layers import Profile
from pipelinejob.fabric import hardware as hardware_data
from pipelinejob.fabric.hardware import Hardware
from pipelinejob.fabric.pool import Pool
from pipelinejob.planning.choice import EFFORT as EFFORT_OF_A_PLAN
from pipelinejob.planning.partition import PATH, does_not_fit
from pipelinejob.schedules.families import described
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.search.auto import Searched, search_schedules
from pipelinejob.search.found import Candidate, Found, rank
from pipelinejob.search.layout_costs import LayoutCosts
from pipelinejob.search.planning import Planning
from pipelinejob.search.reasons import Rejected, Tally
from pipelinejob.search.space import Layout, Option, Recompute, Space
from pipelinejob.search.step_bounds import (
    chain_floor_s,
    guess_layout_s,
    guess_s,
    guess_share,
    has_room,
    held_share,
    layout_floor_s,
    option_floor_s,
)
from pipelinejob.spec.job import Parallelism, PipelineJobSpec

EFFORT = 400_000  # actions that may be planned and simulated: a few seconds
_LEAST_REFINED = 3  # are planned whatever that takes, and the best of so many degrees
_LEAST_OTHERS = 5
_HARDLY = 2  # times as long counts what will hardly fit, as it fills memory so many times by a guess
_SURELY_FULL = 1.15
_PATIENCE = 2  # times the effort, as long as nothing fits
_SLOWLY_MADE = 6
_TIE = 1 - 1e-9


def search(
    spec: PipelineJobSpec,
    pool: Pool,
    *,
    hardware: Hardware | None = None,
    profile: Profile | None = None,
    effort: int = EFFORT,
) -> Found:
    """Find the option of `spec` with the shortest predicted step on the devices of `pool`.

    A measured `profile` holds for the size of micro-batches that it was measured with, and for no
    tensor parallelism. Raises SpecError where nothing can be planned, with the reason of what came
    closest.
    """
    if not pool.num_gpus:
        raise SpecError("spec.parallelism", "no device is free; wait, or name nodes that have some")
    if profile is not None:
        spec = _as_measured(spec)
    found = _Search(spec, pool, hardware or hardware_data.default(), profile).run(effort)
    if not found.candidates:
        raise _nothing(pool, found.rejected)
    return found


def _as_measured(spec: PipelineJobSpec) -> PipelineJobSpec:
    if spec.schedule.micro_batch_size is None:
        raise SpecError(
            "spec.schedule.microBatchSize",
            "is open, but measured costs hold for one size of micro-batches; set it to the one that was measured",
        )
    if spec.parallelism.tensor is not None:
        return spec
    parallelism = Parallelism.model_validate({**spec.parallelism.dump(), "tensor": 1})
    return spec.model_copy(update={"parallelism": parallelism})


def _nothing(pool: Pool, rejected: Sequence[Rejected]) -> SpecError:
    if not rejected:
        return SpecError(
            "spec.parallelism",
            f"the degrees given, and a batch that replicas share equally, find no room among {pool.num_gpus} devices;"
            " use smaller degrees, or more devices",
        )
    reasons = "; ".join(f"{each.what}: {each.why}" for each in rejected[:3])
    return SpecError("spec.parallelism", f"nothing fits: {reasons}")


@dataclass(order=True, slots=True)
class _Entry:
    guess_s: float
    order: int
    floor_s: float = field(compare=False)
    what: Layout | Option = field(compare=False)


class _Search:
    """One search: the options that are left, by guess, and what was planned so far.

    Options are first planned with the partition whose busiest rank is least, then, the best of
    them first, with all that shortens a step.
    """

    def __init__(self, spec: PipelineJobSpec, pool: Pool, hardware: Hardware, profile: Profile | None) -> None:
        self._spec = spec
        self._space = Space(spec, pool, hardware)
        self._costs = LayoutCosts(self._space, hardware, profile)
        self._planning = Planning(self._space, self._costs)
        self._queue: list[_Entry] = []
        self._drafts: list[tuple[float, int, Option]] = []  # step, number
        self._candidates: list[Candidate] = []
        self._unfit: dict[Layout, None] = {}  # for some schedule at least
        self._tally = Tally(pool)
        self._num_options = 0
        self._best_s = float("inf")

    def run(self, effort: int) -> Found:
        for layout in self._space.layouts():
            self._add_layout(layout)
        heapq.heapify(self._queue)
        remaining = effort - self._draft_all(effort * 2 // 3)
        is_complete = self._refine_all(remaining) and not self._queue
        for entry in self._queue:
            self._tally.too_slow(entry.what, entry.floor_s)
        searched = self._search_schedules(effort)
        ranked = sorted((*self._candidates, *searched.candidates), key=rank)
        return Found(
            candidates=tuple(ranked),
            rejected=(*searched.rejected, *self._tally.rejected(ranked)),
            num_options=self._num_options,
            is_complete=is_complete,
            num_searched=searched.num_made,
        )

    def _search_schedules(self, effort: int) -> Searched:
        """Search schedules that compete with the named ones, if the manifest leaves the schedule open."""
        if self._spec.schedule.name is not ScheduleName.AUTO or not self._spec.is_open:
            return Searched()
        ranked = sorted(self._candidates, key=rank)
        unfit = [layout for layout in self._unfit if layout.pipeline > 1]
        return search_schedules(self._spec.schedule, ranked, unfit, self._planning.searched, effort=effort)

    def _draft_all(self, effort: int) -> int:
        """Plan roughly the options that may win; return the actions that this took."""
        spent = 0
        while self._queue and (spent < effort or (self._best_s == float("inf") and spent < _PATIENCE * effort)):
            entry = heapq.heappop(self._queue)
            if entry.floor_s >= self._best_s * _TIE:
                self._tally.too_slow(entry.what, entry.floor_s)
            elif isinstance(entry.what, Layout):
                self._expand(entry.what)
            elif not self._is_closely_bounded(entry.what):
                self._draft(entry.what)
                spent += _num_actions(entry.what)
        self._queue = [entry for entry in self._queue if not self._is_ruled_out(entry)]
        return spent

    def _is_ruled_out(self, entry: _Entry) -> bool:
        if entry.floor_s < self._best_s * _TIE:
            return False
        self._tally.too_slow(entry.what, entry.floor_s)
        return True

    def _refine_all(self, effort: int) -> bool:
        """Plan the options that were drafted as a plan would be made, the best first.

        Say whether that was all.
        """
        spent = 0
        ranked = [option for _, _, option in sorted(self._drafts)]
        others = list({_degrees(option.layout): option for option in reversed(ranked)}.values())[::-1]
        first = dict.fromkeys((*ranked[:_LEAST_REFINED], *others[:_LEAST_OTHERS]))
        for number, option in enumerate(dict.fromkeys((*first, *ranked))):
            if spent >= effort and number >= len(first):
                return False
            num_actions, num_stages = _num_actions(option), option.layout.pipeline * (option.virtual_stages or 1)
            try:
                self._candidates.append(self._planning.candidate(option, EFFORT_OF_A_PLAN))
            except SpecError as error:
                self._tally.failed(option, error)
            spent += 4 * num_actions + min(EFFORT_OF_A_PLAN, num_actions * num_stages**2)
        return True

    def _add_layout(self, layout: Layout) -> None:
        table, devices = self._costs.table(layout), self._costs.of(layout)
        if self._is_too_large(layout, layout, copies=1):
            return
        floor_s = layout_floor_s(layout, table, devices.speeds)
        expected_s = guess_layout_s(layout, table, devices.speeds, self._costs.joined(layout))
        self._queue.append(_Entry(expected_s, len(self._queue), floor_s, layout))

    def _is_too_large(self, what: Layout | Option, layout: Layout, *, copies: int) -> bool:
        limits = self._costs.of(layout).limits
        share = held_share(self._costs.table(layout), limits, copies=copies) if limits else 0.0
        if limits and share > 1:
            self._tally.too_large(what, share * sum(limits) / len(limits), max(limits))
        return share > 1

    def _expand(self, layout: Layout) -> None:
        limits = self._costs.of(layout).limits
        for option in self._space.options(layout):
            if self._is_too_large(option, layout, copies=described(option.schedule).copies):
                continue
            if limits is None or has_room(option, self._costs.table(layout), limits):
                self._push(option)
            else:
                self._tally.failed(option, TooLargeError(PATH, does_not_fit(layout.pipeline, limits)))
                self._push_some(option)

    def _push_some(self, option: Option) -> None:
        """Look at the same with recomputation where it is needed, if that is to be chosen."""
        if option.recompute is Recompute.NONE and self._spec.schedule.leaves_recomputing_open:
            self._push(replace(option, recompute=Recompute.SOME))

    def _push(self, option: Option) -> None:
        self._num_options += 1
        table, speeds = self._costs.table(option.layout), self._costs.of(option.layout).speeds
        joined = self._costs.joined(option.layout)
        floor_s = option_floor_s(option, table, speeds, joined)
        expected_s = max(floor_s, guess_s(option, table, speeds, joined))
        limits = self._costs.of(option.layout).limits
        if limits is not None and guess_share(option, table, limits) > _SURELY_FULL:
            expected_s *= _HARDLY
        heapq.heappush(self._queue, _Entry(expected_s, self._num_options, floor_s, option))

    def _is_closely_bounded(self, option: Option) -> bool:
        """Return whether the closer, slower bound rules an option out."""
        layout = option.layout
        floor_s = chain_floor_s(
            option, self._costs.table(layout), self._costs.of(layout).speeds, self._costs.joined(layout)
        )
        if floor_s < self._best_s * _TIE:
            return False
        self._tally.too_slow(option, floor_s)
        return True

    def _draft(self, option: Option) -> None:
        is_searched = option.schedule is ScheduleName.AUTO  # which takes as long when it is roughly planned
        try:
            made = self._planning.candidate(option, EFFORT_OF_A_PLAN if is_searched else 0)
        except SpecError as error:
            self._tally.failed(option, error)
            self._unfit[option.layout] = None
            if isinstance(error, TooLargeError):
                self._push_some(option)
        else:
            if is_searched:
                self._candidates.append(made)
            else:
                self._drafts.append((made.step_s, len(self._drafts), option))
            self._best_s = min(self._best_s, made.step_s)


def _degrees(layout: Layout) -> tuple[int, int, int]:
    return layout.pipeline, layout.data, layout.tensor


def _num_actions(option: Option) -> int:
    """Return an option's cost in actions; schedules that take long to make count several times."""
    own = 2 * option.layout.pipeline * (option.virtual_stages or 1) * option.layout.micro_batches
    return own * (_SLOWLY_MADE if described(option.schedule).is_split else 1)
