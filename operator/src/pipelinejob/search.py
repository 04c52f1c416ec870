"""Chooses what a manifest leaves open: degrees, devices along the pipeline, schedule, micro-batches, recomputation.

Options are looked at in the order of a guess, the most promising first; each is planned and simulated exactly as
`planner.make_plan` would, unless a lower bound already says that it cannot win. When nothing is left whose bound is
below the best found, that is the best there is; a search that would take too long ends before, and says so.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from pipelinejob import hardware as hardware_data
from pipelinejob.choice import EFFORT as EFFORT_OF_A_PLAN
from pipelinejob.choice import Choice, choose
from pipelinejob.chosen import Chosen, resolved
from pipelinejob.cost import Profile
from pipelinejob.errors import SpecError, TooLargeError
from pipelinejob.hardware import DeviceKind, Hardware
from pipelinejob.links import Links
from pipelinejob.outlook import outlook
from pipelinejob.partition import PATH, does_not_fit
from pipelinejob.planner import counted, on_devices
from pipelinejob.pool import Pool
from pipelinejob.schedules.catalogue import FAMILIES
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.search_bounds import (
    Joined,
    Table,
    chain_floor_s,
    copies_of,
    guess_layout_s,
    guess_s,
    guess_share,
    has_room,
    held_share,
    layout_floor_s,
    option_floor_s,
)
from pipelinejob.search_reasons import Rejected, Tally
from pipelinejob.search_space import Layout, Option, Recompute, Space
from pipelinejob.spec import Parallelism, PipelineJobSpec

__all__ = ["Candidate", "Found", "Rejected", "choice_of", "resolved", "search"]

EFFORT = 400_000  # actions that may be planned and simulated: a few seconds
_LEAST_REFINED = 3  # are planned whatever that takes, and the best of so many degrees
_LEAST_OTHERS = 5
_HARDLY = 2  # times as long counts what will hardly fit, as it fills memory so many times by a guess
_SURELY_FULL = 1.15
_PATIENCE = 2  # times the effort, as long as nothing fits
_SLOWLY_MADE = 6
_TIE = 1 - 1e-9


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An option that was planned. `devices` and `links` are what it was planned for, by stage."""

    chosen: Chosen
    spec: PipelineJobSpec
    step_s: float
    tokens_per_s: float
    bubble_ratio: float  # mean over stages
    memory_bytes: tuple[int, ...]  # by stage
    layers: tuple[int, ...]  # of each stretch, first to last
    devices: tuple[DeviceKind, ...]
    links: Links = field(repr=False)

    @property
    def title(self) -> str:
        """Name it in a line."""
        return title(self.chosen)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found: all that was planned, the best first, and why nothing else was.

    `is_complete` says that no option is left whose lower bound is below the best.
    """

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    num_options: int
    is_complete: bool

    @property
    def best(self) -> Candidate:
        """Give the option with the shortest step."""
        return self.candidates[0]

    @property
    def alternatives(self) -> tuple[Candidate, ...]:
        """Give the best candidate of each three degrees, the best first."""
        degrees: dict[tuple[int, int, int], Candidate] = {}
        for each in self.candidates:
            degrees.setdefault((each.chosen.pipeline, each.chosen.data, each.chosen.tensor), each)
        return tuple(degrees.values())


def choice_of(found: Found) -> Chosen:
    """Give what is to stand in the spec."""
    return found.best.chosen


def title(chosen: Chosen) -> str:
    """Name a choice in a line, as in `8 stages x 64 replicas x 8 GPUs, 1F1B, 24 micro-batches of 1`."""
    stages = "no pipeline" if chosen.pipeline == 1 else f"{chosen.pipeline} stages"
    replicas = f" x {chosen.data} replicas" if chosen.data > 1 else ""
    tensor = f" x {chosen.tensor} GPUs" if chosen.tensor > 1 else ""
    chunks = f" with {chosen.virtual_stages} stretches each" if chosen.virtual_stages else ""
    schedule = "" if chosen.pipeline == 1 else f", {chosen.schedule}{chunks}"
    some = f" on stages {_listed(chosen.recompute_stages)}" if chosen.recompute_stages else ""
    recompute = f", recomputing{some}" if chosen.recompute else ""
    batch = f"{chosen.micro_batches} micro-batch{'es' * (chosen.micro_batches != 1)} of {chosen.micro_batch_size}"
    return f"{stages}{replicas}{tensor}{schedule}, {batch}{recompute}"


def _listed(stages: Sequence[int]) -> str:
    return ", ".join(map(str, stages))


def search(
    spec: PipelineJobSpec,
    pool: Pool,
    *,
    hardware: Hardware | None = None,
    profile: Profile | None = None,
    effort: int = EFFORT,
) -> Found:
    """Find the option of `spec` with the shortest predicted step on the devices of `pool`.

    A measured `profile` holds for the size of micro-batches that it was measured with, and for no tensor parallelism.
    Raises SpecError where nothing can be planned, with the reason of what came closest.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What the stages stand on: speeds relative to the fastest device among them, and bytes of each."""

    speeds: tuple[float, ...]
    limits: tuple[int, ...] | None
    names: tuple[str, ...]  # of the device kinds


class _Search:
    """One search: the options that are left, by guess, and what was planned so far.

    Options are first planned with the partition whose busiest rank is least, then, the best of them first, with all
    that shortens a step.
    """

    def __init__(self, spec: PipelineJobSpec, pool: Pool, hardware: Hardware, profile: Profile | None) -> None:
        self._spec = spec
        self._hardware = hardware
        self._profile = profile
        self._space = Space(spec, pool, hardware)
        self._tables = cache(self._table)
        self._grounds = cache(self._ground)
        self._queue: list[_Entry] = []
        self._drafts: list[tuple[float, int, Option]] = []  # step, number
        self._candidates: list[Candidate] = []
        self._tally = Tally(pool)
        self._num_options = 0
        self._best_s = float("inf")

    def run(self, effort: int) -> Found:
        for layout in self._space.layouts():
            self._add_layout(layout)
        heapq.heapify(self._queue)
        left = effort - self._draft_all(effort * 2 // 3)
        is_complete = self._refine_all(left) and not self._queue
        for entry in self._queue:
            self._tally.too_slow(entry.what, entry.floor_s)
        ranked = sorted(self._candidates, key=_rank)
        return Found(
            candidates=tuple(ranked),
            rejected=self._tally.rejected(ranked),
            num_options=self._num_options,
            is_complete=is_complete,
        )

    def _draft_all(self, effort: int) -> int:
        """Plan the options that may win, roughly; give the actions that this took."""
        spent = 0
        while self._queue and (spent < effort or (not self._drafts and spent < _PATIENCE * effort)):
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
        """Plan the options that were drafted as a plan would be made, the best first; say whether that was all."""
        spent = 0
        ranked = [option for _, _, option in sorted(self._drafts)]
        others = list({_degrees(option.layout): option for option in reversed(ranked)}.values())[::-1]
        first = dict.fromkeys((*ranked[:_LEAST_REFINED], *others[:_LEAST_OTHERS]))
        for number, option in enumerate(dict.fromkeys((*first, *ranked))):
            if spent >= effort and number >= len(first):
                return False
            num_actions, num_stages = _num_actions(option), option.layout.pipeline * (option.virtual_stages or 1)
            try:
                self._candidates.append(self._candidate(option, EFFORT_OF_A_PLAN))
            except SpecError as error:
                self._tally.failed(option, error)
            spent += 4 * num_actions + min(EFFORT_OF_A_PLAN, num_actions * num_stages**2)
        return True

    def _table(self, tensor: int, micro_batch_size: int, names: tuple[str, ...]) -> Table:
        """Give the costs on the fastest of some devices."""
        if self._profile is not None:
            return Table(profile=self._profile)
        one = Chosen(
            pipeline=1,
            data=1,
            tensor=tensor,
            schedule=ScheduleName.ONE_F_ONE_B,
            micro_batches=1,
            micro_batch_size=micro_batch_size,
        )
        kinds = [self._space.kind(name) for name in names]
        profile = counted(resolved(self._spec, one), kinds, self._hardware)
        return Table(profile=profile, tied_bytes=self._spec.model.tied_bytes // tensor)

    def _table_of(self, layout: Layout) -> Table:
        return self._tables(layout.tensor, layout.micro_batch_size, self._grounds(layout.seats).names)

    def _joined(self, layout: Layout) -> Joined:
        return Joined(hop=self._space.worst_hop(layout), ring=self._space.best_ring(layout))

    def _ground(self, seats: tuple[int, ...]) -> _Ground:
        precision = self._spec.training.precision
        devices = [self._space.group(seat).device for seat in seats]
        fastest = max(device.attained_flops(precision) for device in devices)
        memory = tuple(device.memory_bytes for device in devices)
        return _Ground(
            speeds=tuple(device.attained_flops(precision) / fastest for device in devices),
            limits=tuple(each for each in memory if each is not None) if None not in memory else None,
            names=tuple(dict.fromkeys(device.name for device in devices)),
        )

    def _add_layout(self, layout: Layout) -> None:
        table, ground = self._table_of(layout), self._grounds(layout.seats)
        if self._is_too_large(layout, layout, copies=1):
            return
        floor_s = layout_floor_s(layout, table, ground.speeds)
        expected_s = guess_layout_s(layout, table, ground.speeds, self._joined(layout))
        self._queue.append(_Entry(expected_s, len(self._queue), floor_s, layout))

    def _is_too_large(self, what: Layout | Option, layout: Layout, *, copies: int) -> bool:
        limits = self._grounds(layout.seats).limits
        share = held_share(self._table_of(layout), limits, copies=copies) if limits else 0.0
        if limits and share > 1:
            self._tally.too_large(what, share * sum(limits) / len(limits), max(limits))
        return share > 1

    def _expand(self, layout: Layout) -> None:
        limits = self._grounds(layout.seats).limits
        for option in self._space.options(layout):
            if self._is_too_large(option, layout, copies=copies_of(option.schedule)):
                continue
            if limits is None or has_room(option, self._table_of(layout), limits):
                self._push(option)
            else:
                self._tally.failed(option, TooLargeError(PATH, does_not_fit(layout.pipeline, limits)))
                self._push_some(option)

    def _push_some(self, option: Option) -> None:
        """Look at the same with recomputation where it is needed, if that is to be chosen."""
        if option.recompute is Recompute.NONE and self._spec.schedule.recompute is None and self._spec.is_open:
            self._push(replace(option, recompute=Recompute.SOME))

    def _push(self, option: Option) -> None:
        self._num_options += 1
        table, speeds = self._table_of(option.layout), self._grounds(option.layout.seats).speeds
        joined = self._joined(option.layout)
        floor_s = option_floor_s(option, table, speeds, joined)
        expected_s = max(floor_s, guess_s(option, table, speeds, joined))
        limits = self._grounds(option.layout.seats).limits
        if limits is not None and guess_share(option, table, limits) > _SURELY_FULL:
            expected_s *= _HARDLY
        heapq.heappush(self._queue, _Entry(expected_s, self._num_options, floor_s, option))

    def _is_closely_bounded(self, option: Option) -> bool:
        """Say whether the bound that takes longer to find rules an option out."""
        layout = option.layout
        floor_s = chain_floor_s(
            option, self._table_of(layout), self._grounds(layout.seats).speeds, self._joined(layout)
        )
        if floor_s < self._best_s * _TIE:
            return False
        self._tally.too_slow(option, floor_s)
        return True

    def _draft(self, option: Option) -> None:
        try:
            step_s = self._candidate(option, 0).step_s
        except TooLargeError as error:
            self._tally.failed(option, error)
            self._push_some(option)
        except SpecError as error:
            self._tally.failed(option, error)
        else:
            self._drafts.append((step_s, len(self._drafts), option))
            self._best_s = min(self._best_s, step_s)

    def _candidate(self, option: Option, effort: int) -> Candidate:
        """Plan an option with the links that shorten its step the most."""
        layout = option.layout
        profile = on_devices(self._table_of(layout).profile, self._spec, self._space.devices(layout), self._hardware)
        made = (self._made(option, profile, links, effort) for links in self._all_links(layout))
        return min(made, key=lambda each: each.step_s)

    def _all_links(self, layout: Layout) -> list[Links]:
        return [self._space.links(layout, near) for near in self._space.nears(layout)]

    def _made(self, option: Option, profile: Profile, links: Links, effort: int) -> Candidate:
        chosen, choice = self._chosen(option, profile, links, effort)
        spec = resolved(self._spec, chosen)
        promised = outlook(choice.division, choice.schedule_for, choice.length, replicas=chosen.data)
        step_s = promised.step_s + profile.step_overhead_s
        sequences = chosen.data * option.layout.sequences
        return Candidate(
            chosen=chosen,
            spec=spec,
            step_s=step_s,
            tokens_per_s=sequences * spec.data.sequence_length / step_s,
            bubble_ratio=sum(promised.bubble_ratios) / len(promised.bubble_ratios),
            memory_bytes=choice.memory_bytes,
            layers=tuple(end - first for first, end in choice.division.cuts),
            devices=self._space.devices(option.layout),
            links=links,
        )

    def _chosen(self, option: Option, profile: Profile, links: Links, effort: int) -> tuple[Chosen, Choice]:
        if option.recompute is not Recompute.SOME:
            given = self._spec.schedule.recompute_stages if option.recompute is Recompute.GIVEN else None
            chosen = option.chosen(given)
            return chosen, choose(resolved(self._spec, chosen), profile, links=links, effort=effort)
        limits = profile.memory_limits(option.layout.pipeline) or ()
        free = profile.model_copy(update={"device_memory_bytes": None, "stage_memory_bytes": None})
        stages: tuple[int, ...] = ()
        while True:
            chosen = option.chosen(stages)
            choice = choose(resolved(self._spec, chosen), free, links=links, effort=effort)
            over = {rank for rank, limit in enumerate(limits) if choice.memory_bytes[rank] > limit} - set(stages)
            if not over:
                return chosen, choose(resolved(self._spec, chosen), profile, links=links, effort=effort)
            stages = tuple(sorted({*stages, *over}))


def _degrees(layout: Layout) -> tuple[int, int, int]:
    return layout.pipeline, layout.data, layout.tensor


def _num_actions(option: Option) -> int:
    """Give the actions that an option is worth: of schedules that take long to make, several times their own."""
    family = FAMILIES.get(option.schedule)
    own = 2 * option.layout.pipeline * (option.virtual_stages or 1) * option.layout.micro_batches
    return own * (_SLOWLY_MADE if family is not None and family.is_split else 1)


def _rank(candidate: Candidate) -> tuple[float, int, int, int]:
    """Order by the step; of equal ones those with fewer devices, fewer stages, and fewer stretches of layers first."""
    chosen = candidate.chosen
    return _rounded(candidate.step_s), chosen.num_gpus, chosen.pipeline, len(candidate.layers)


def _rounded(seconds: float) -> float:
    """Round away what rounding alone made."""
    return float(f"{seconds:.9g}")
