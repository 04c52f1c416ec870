"""Chooses what a manifest leaves open: degrees, devices along the pipeline, schedule, micro-batches, recomputation.

Options are looked at in the order of a guess, the most promising first; each is planned and simulated exactly as
`planner.make_plan` would, unless a lower bound already says that it cannot win. When nothing is left whose bound is
below the best found, that is the best there is; a search that would take too long ends before, and says so.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from pipelinejob import hardware as hardware_data
from pipelinejob.choice import Choice, choose
from pipelinejob.chosen import Chosen, resolved
from pipelinejob.cost import Profile
from pipelinejob.errors import SpecError, TooLargeError
from pipelinejob.hardware import DeviceKind, Hardware
from pipelinejob.links import Links
from pipelinejob.outlook import outlook
from pipelinejob.planner import counted, on_devices
from pipelinejob.pool import Pool
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.search_bounds import (
    Table,
    chain_floor_s,
    copies_of,
    guess_s,
    held_share,
    layout_floor_s,
    option_floor_s,
)
from pipelinejob.search_reasons import Rejected, Tally
from pipelinejob.search_space import Layout, Option, Recompute, Space
from pipelinejob.spec import Parallelism, PipelineJobSpec

__all__ = ["Candidate", "Found", "Rejected", "choice_of", "resolved", "search"]

EFFORT = 6_000_000  # actions that may be planned and simulated: some ten seconds
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
    """One search: the options that are left, by guess, and what was planned so far."""

    def __init__(self, spec: PipelineJobSpec, pool: Pool, hardware: Hardware, profile: Profile | None) -> None:
        self._spec = spec
        self._hardware = hardware
        self._profile = profile
        self._space = Space(spec, pool, hardware)
        self._tables = cache(self._table)
        self._queue: list[_Entry] = []
        self._candidates: list[Candidate] = []
        self._tally = Tally(pool)
        self._num_entries = self._num_options = 0
        self._best_s = float("inf")

    def run(self, effort: int) -> Found:
        for layout in self._space.layouts():
            self._add_layout(layout)
        heapq.heapify(self._queue)
        while self._queue and effort > 0:
            entry = heapq.heappop(self._queue)
            if entry.floor_s >= self._best_s * _TIE:
                self._tally.too_slow(entry.what, entry.floor_s)
            elif isinstance(entry.what, Layout):
                self._expand(entry.what)
            elif not self._is_closely_bounded(entry.what):
                effort -= self._plan(entry.what)
        return self._found()

    def _found(self) -> Found:
        left = [entry for entry in self._queue if entry.floor_s < self._best_s * _TIE]
        for entry in self._queue:
            self._tally.too_slow(entry.what, entry.floor_s)
        ranked = sorted(self._candidates, key=_rank)
        return Found(
            candidates=tuple(ranked),
            rejected=self._tally.rejected(ranked),
            num_options=self._num_options,
            is_complete=not left,
        )

    def _table(self, tensor: int, micro_batch_size: int, devices: tuple[str, ...]) -> Table:
        """Give the costs on the fastest of some devices."""
        if self._profile is not None:
            return Table(profile=self._profile)
        kinds = [self._space.kind(name) for name in devices]
        one = Chosen(
            pipeline=1, data=1, tensor=tensor, schedule=ScheduleName.ONE_F_ONE_B, micro_batches=1,
            micro_batch_size=micro_batch_size,
        )  # fmt: skip
        return Table(profile=counted(resolved(self._spec, one), kinds, self._hardware))

    def _costs(self, layout: Layout) -> tuple[Table, Profile]:
        """Give a layout's costs, and the same with the speed and memory of each stage's device."""
        devices = self._space.devices(layout)
        names = tuple(dict.fromkeys(device.name for device in devices))
        table = self._tables(layout.tensor, layout.micro_batch_size, names)
        return table, on_devices(table.profile, self._spec, devices, self._hardware)

    def _add_layout(self, layout: Layout) -> None:
        table, profile = self._costs(layout)
        speeds, limits = _speeds(profile, layout), profile.memory_limits(layout.pipeline)
        if limits is not None and held_share(table, limits) > 1:
            self._tally.too_large(layout, held_share(table, limits) * limits[0], limits[0])
            return
        floor_s = layout_floor_s(layout, table, speeds)
        self._queue.append(_Entry(floor_s, len(self._queue), floor_s, layout))

    def _expand(self, layout: Layout) -> None:
        table, profile = self._costs(layout)
        speeds, limits = _speeds(profile, layout), profile.memory_limits(layout.pipeline)
        for option in self._space.options(layout):
            copies = copies_of(option.schedule)
            if limits is not None and held_share(table, limits, copies=copies) > 1:
                self._tally.too_large(option, held_share(table, limits, copies=copies) * limits[0], limits[0])
                continue
            self._push(option, table, speeds)

    def _push(self, option: Option, table: Table, speeds: tuple[float, ...]) -> None:
        self._num_options += 1
        floor_s = option_floor_s(option, table, speeds)
        guess_s_ = max(floor_s, guess_s(option, table, speeds))
        heapq.heappush(self._queue, _Entry(guess_s_, self._num_options, floor_s, option))

    def _is_closely_bounded(self, option: Option) -> bool:
        """Say whether the bound that takes longer to find rules an option out."""
        table, profile = self._costs(option.layout)
        floor_s = chain_floor_s(option, table, _speeds(profile, option.layout))
        if floor_s < self._best_s * _TIE:
            return False
        self._tally.too_slow(option, floor_s)
        return True

    def _plan(self, option: Option) -> int:
        """Plan an option; give the actions that this took."""
        table, profile = self._costs(option.layout)
        try:
            candidate = min(
                (self._candidate(option, profile, links) for links in self._all_links(option.layout)),
                key=lambda each: each.step_s,
            )
        except TooLargeError as error:
            self._tally.failed(option, error)
            if option.recompute is Recompute.NONE and self._spec.schedule.recompute is None:
                self._push(_with_some(option), table, _speeds(profile, option.layout))
        except SpecError as error:
            self._tally.failed(option, error)
        else:
            self._candidates.append(candidate)
            self._best_s = min(self._best_s, candidate.step_s)
        return 2 * option.layout.pipeline * (option.virtual_stages or 1) * option.layout.micro_batches

    def _all_links(self, layout: Layout) -> list[Links]:
        return [self._space.links(layout, near) for near in self._space.nears(layout)]

    def _candidate(self, option: Option, profile: Profile, links: Links) -> Candidate:
        chosen, choice = self._chosen(option, profile, links)
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

    def _chosen(self, option: Option, profile: Profile, links: Links) -> tuple[Chosen, Choice]:
        if option.recompute is not Recompute.SOME:
            given = self._spec.schedule.recompute_stages if option.recompute is Recompute.GIVEN else None
            chosen = option.chosen(given)
            return chosen, choose(resolved(self._spec, chosen), profile, links=links)
        limits = profile.memory_limits(option.layout.pipeline) or ()
        free = profile.model_copy(update={"device_memory_bytes": None, "stage_memory_bytes": None})
        stages: tuple[int, ...] = ()
        while True:
            chosen = option.chosen(stages)
            choice = choose(resolved(self._spec, chosen), free, links=links)
            over = {rank for rank, limit in enumerate(limits) if choice.memory_bytes[rank] > limit} - set(stages)
            if not over:
                return chosen, choose(resolved(self._spec, chosen), profile, links=links)
            stages = tuple(sorted({*stages, *over}))


def _with_some(option: Option) -> Option:
    return Option(option.layout, option.schedule, option.virtual_stages, Recompute.SOME)


def _speeds(profile: Profile, layout: Layout) -> tuple[float, ...]:
    return profile.stage_speeds or (1.0,) * layout.pipeline


def _rank(candidate: Candidate) -> tuple[float, int, int, int]:
    """Order by the step; of equal ones those with fewer devices, fewer stages, and fewer stretches of layers first."""
    chosen = candidate.chosen
    return round_to(candidate.step_s), chosen.num_gpus, chosen.pipeline, len(candidate.layers)


def round_to(seconds: float) -> float:
    """Round away what rounding alone made."""
    return float(f"{seconds:.9g}")
