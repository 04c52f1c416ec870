"""The options of a search: every configuration that the manifest, the model and the devices allow.

A layout says how many ways the work is split, on which devices the stages stand and how a step's
sequences are cut; an option adds the schedule and what is recomputed. Both are generated here;
`step_bounds` and the simulator judge them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from itertools import groupby, pairwise, permutations

from pipelinejob.costs.layers import layer_names
from pipelinejob.costs.links import Links
from pipelinejob.fabric.hardware import DeviceKind, Hardware, LinkKind
from pipelinejob.fabric.pool import Pool, PoolGroup
from pipelinejob.schedules.families import FAMILIES, described
from pipelinejob.schedules.family import Family
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.chosen import Chosen
from pipelinejob.spec.job import MAX_RANKS, Device, PipelineJobSpec, Precision
from pipelinejob.spec.schedules.rules import MAX_WRITTEN

MIXED = -1  # a seat that any group's devices may take, and so counts as the slowest of them
_MAX_COUNT = 65536  # micro-batches, and sequences in one: the bounds of the fields
_CHUNKS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_MAX_ORDERED_GROUPS = 3  # of more kinds of device, no order along the chain is tried


class Recompute(StrEnum):
    """What stages compute again."""

    NONE = "none"
    SOME = "some"  # as many of each stage's first layers as its memory demands
    GIVEN = "given"  # what the manifest says of each
    ALL = "all"


class Near(StrEnum):
    """Who uses the links within nodes: neighbouring stages, or a stage's replicas."""

    PIPELINE = "pipeline"
    DATA = "data"


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees, the pool's group that each stage stands on (all replicas of it), and the cut of a step's sequences."""

    pipeline: int
    data: int
    tensor: int
    seats: tuple[int, ...]
    sequences: int  # of a step, for each replica
    micro_batch_size: int

    @property
    def micro_batches(self) -> int:
        return -(-self.sequences // self.micro_batch_size)

    @property
    def num_gpus(self) -> int:
        return self.pipeline * self.data * self.tensor


@dataclass(frozen=True, slots=True)
class Option:
    """A layout with a schedule."""

    layout: Layout
    schedule: ScheduleName
    virtual_stages: int | None
    recompute: Recompute

    def chosen(self, stages: tuple[int, ...] | None = None, layers: tuple[int, ...] | None = None) -> Chosen:
        """Return the fields of the spec that this option stands for; recomputing on `stages`, or so many `layers`."""
        layout = self.layout
        is_ragged = layout.sequences != layout.micro_batches * layout.micro_batch_size
        return Chosen(
            pipeline=layout.pipeline,
            data=layout.data,
            tensor=layout.tensor,
            schedule=self.schedule,
            virtual_stages=self.virtual_stages,
            micro_batches=layout.micro_batches,
            micro_batch_size=layout.micro_batch_size,
            batch_size=layout.sequences if is_ragged else None,
            recompute=self.recompute is Recompute.ALL or bool(stages) or bool(layers),
            recompute_stages=stages or None,
            recompute_layers=layers,
        )


class Space:
    """The layouts and options of one spec in one pool."""

    def __init__(self, spec: PipelineJobSpec, pool: Pool, hardware: Hardware, *, size: int | None = None) -> None:
        """Look at one size of micro-batches only, if one is given."""
        self.spec = spec
        self.pool = pool
        self.num_layers = len(layer_names(spec.model))
        self.max_gpus = min(spec.parallelism.gpus or pool.num_gpus, pool.num_gpus)
        self._hardware = hardware
        self._size = size
        self._slowest = _slowest(pool, spec.training.precision)

    def layouts(self) -> Iterator[Layout]:
        """Yield every layout that the pool has room for."""
        for tensor in self.tensor_degrees():
            for pipeline in self.pipeline_degrees(tensor):
                for data in self.data_degrees(pipeline, tensor):
                    for seats in self.seatings(pipeline, data, tensor):
                        for sequences, size in self.cuts(data):
                            yield Layout(pipeline, data, tensor, seats, sequences, size)

    def tensor_degrees(self) -> Iterator[int]:
        """Yield the powers of two that heads and width can be shared by, within a node.

        Or what is fixed.
        """
        fixed = self.spec.parallelism.tensor
        if fixed is not None:
            yield fixed
            return
        largest = max(group.gpus_per_node for group in self.pool.groups)
        tensor = 1
        while tensor <= min(largest, self.max_gpus) and (tensor == 1 or self._is_shared(tensor)):
            yield tensor
            tensor *= 2

    def _is_shared(self, tensor: int) -> bool:
        decoder = self.spec.model.layer_sizes(self.spec.data.sequence_length)
        if decoder is None or self.spec.device is not Device.GPU:
            return False
        branches = (branch for block in dict.fromkeys(decoder.blocks) for branch in block)
        units = (matrix.units for branch in branches for matrix in branch.matrices if not matrix.is_whole)
        return all(each is None or each % tensor == 0 for each in units)

    def pipeline_degrees(self, tensor: int) -> Iterator[int]:
        """Yield the numbers of stages that share the layers and find devices."""
        fixed = self.spec.parallelism.pipeline
        most = min(self.num_layers, self.max_gpus // tensor, MAX_RANKS)
        yield from range(1, most + 1) if fixed is None else (fixed,) if fixed * tensor <= self.max_gpus else ()

    def data_degrees(self, pipeline: int, tensor: int) -> Iterator[int]:
        """Yield the numbers of replicas that share a step's sequences equally and find devices."""
        fixed, batch = self.spec.parallelism.data, self.spec.schedule.global_batch_size
        most = min(self.max_gpus // (pipeline * tensor), MAX_RANKS // pipeline, 1024)
        if fixed is not None:
            yield from (fixed,) if fixed <= most else ()
            return
        assert batch is not None, "the CRD demands globalBatchSize where data is open"
        yield from (data for data in range(1, most + 1) if batch % data == 0)

    def cuts(self, data: int) -> Iterator[tuple[int, int]]:
        """Yield sequences (of a replica's step, of a micro-batch): the spec's, else divisors and powers of two."""
        schedule = self.spec.schedule
        count, size = schedule.micro_batches, schedule.micro_batch_size
        if schedule.global_batch_size is None and schedule.batch_size is None:
            yield count * size, size
            return
        sequences = schedule.batch_size or (schedule.global_batch_size or 0) // data
        if size is None:
            size = self._size
        if size is not None:
            sizes = {size} if size <= sequences else set()
        elif count is not None:
            sizes = {-(-sequences // count)}
        else:
            sizes = set(_sizes(sequences))
        for each in sorted(size for size in sizes if size <= _MAX_COUNT):
            made = -(-sequences // each)
            if count in {None, made} and made <= _MAX_COUNT and (not self._updates_whole or sequences % each == 0):
                yield sequences, each

    @property
    def _updates_whole(self) -> bool:
        return described(self.spec.schedule.name).is_asynchronous

    def seatings(self, pipeline: int, data: int, tensor: int) -> Iterator[tuple[int, ...]]:
        """Return the groups that the stages can stand on: each group's stages side by side, or all of them mixed."""
        return iter(self._seatings(pipeline, data, tensor))

    def _seatings(self, pipeline: int, data: int, tensor: int) -> list[tuple[int, ...]]:
        groups = self.pool.groups
        room = [group.room_for(tensor) // data for group in groups]
        found = []
        if len(groups) <= _MAX_ORDERED_GROUPS:
            for order in _orders(len(groups)):
                found += [
                    tuple(group for group, number in zip(order, counts, strict=True) for _ in range(number))
                    for counts in _compositions(pipeline, [room[group] for group in order])
                ]
        if len(groups) > 1 and pipeline * data <= sum(group.room_for(tensor) for group in groups):
            found.append((MIXED,) * pipeline)
        return found

    def kind(self, name: str) -> DeviceKind:
        """Return a device of the pool by its name."""
        return next(group.device for group in self.pool.groups if group.device.name == name)

    def group(self, seat: int) -> PoolGroup:
        """Return the group that a seat is of."""
        return self._slowest if seat == MIXED else self.pool.groups[seat]

    def devices(self, layout: Layout) -> tuple[DeviceKind, ...]:
        """Return the device of each stage."""
        return tuple(self.group(seat).device for seat in layout.seats)

    def links(self, layout: Layout, near: Near) -> Links:
        """Return the links between stages and between replicas in the closest placement."""
        places = _places(layout.seats, [self.group(seat).gpus_per_node // layout.tensor for seat in layout.seats])
        pairs = [pair for pair in pairwise((*range(layout.pipeline), 0)) if pair[0] != pair[1]]
        return Links(
            hops={pair: self._hop(layout, near, places, *pair) for pair in pairs},
            rings={rank: self._ring(layout, near, rank) for rank in range(layout.pipeline)} if layout.data > 1 else {},
        )

    def nears(self, layout: Layout) -> tuple[Near, ...]:
        """Return who may get the near links.

        Replicas only if all of a stage's find room in one node.
        """
        if layout.pipeline == 1 or layout.data == 1 or any(self._in_one_node(layout, seat) for seat in layout.seats):
            return (Near.PIPELINE,)
        rooms = (self.group(seat).gpus_per_node // layout.tensor for seat in layout.seats)
        return (Near.PIPELINE, Near.DATA) if layout.data <= min(rooms) else (Near.PIPELINE,)

    def worst_hop(self, layout: Layout) -> LinkKind | None:
        """Return the slowest link between neighbouring stages, if these get the near links.

        None without neighbours.
        """
        seats = set(layout.seats)
        if layout.pipeline == 1:
            return None
        if len(seats) > 1:
            groups = [self.group(seat) for seat in dict.fromkeys(layout.seats)]
            return min((self._across(*pair) for pair in pairwise(groups)), key=lambda link: link.bytes_per_s)
        (seat,) = seats
        is_near = layout.pipeline <= self.group(seat).gpus_per_node // layout.tensor
        return self._within(seat) if is_near or self._in_one_node(layout, seat) else self._between(seat)

    def best_ring(self, layout: Layout) -> LinkKind | None:
        """Return the fastest link that the replicas of a stage may be joined by.

        None without replicas.
        """
        if layout.data == 1:
            return None
        near = self.nears(layout)[-1]
        return max((self._ring(layout, near, rank) for rank in self._one_of_each(layout)), key=_rate)

    def _one_of_each(self, layout: Layout) -> list[int]:
        return [layout.seats.index(seat) for seat in dict.fromkeys(layout.seats)]

    def _hop(self, layout: Layout, near: Near, places: list[tuple[int, int]], source: int, target: int) -> LinkKind:
        here, there = layout.seats[source], layout.seats[target]
        if here != there:
            return self._across(self.group(here), self.group(there))
        is_near = near is Near.PIPELINE and places[source] == places[target]
        return self._within(here) if is_near or self._in_one_node(layout, here) else self._between(here)

    def _ring(self, layout: Layout, near: Near, rank: int) -> LinkKind:
        seat = layout.seats[rank]
        in_node = near is Near.DATA or layout.pipeline == 1
        is_near = in_node and layout.data <= self.group(seat).gpus_per_node // layout.tensor
        return self._within(seat) if is_near or self._in_one_node(layout, seat) else self._between(seat)

    def _in_one_node(self, layout: Layout, seat: int) -> bool:
        if seat == MIXED:
            return False
        room = self.group(seat).gpus_per_node // layout.tensor
        return layout.seats.count(seat) * layout.data <= room

    def _within(self, seat: int) -> LinkKind:
        return self._hardware.link_of(self.group(seat).device)

    def _between(self, seat: int) -> LinkKind:
        if seat == MIXED:
            return min(
                (self._across(a, b) for a in self.pool.groups for b in self.pool.groups if a is not b),
                key=lambda link: link.bytes_per_s,
            )
        group = self.group(seat)
        return group.link or self._hardware.network_of(group.device)

    def _across(self, one: PoolGroup, other: PoolGroup) -> LinkKind:
        if self.pool.link is not None:
            return self.pool.link
        own = (group.link or self._hardware.network_of(group.device) for group in (one, other))
        return min(own, key=lambda link: link.bytes_per_s)

    def options(self, layout: Layout) -> Iterator[Option]:
        """Yield the schedules that a layout may be played by."""
        for name, chunks in self._schedules(layout):
            if layout.pipeline * (chunks or 1) * layout.micro_batches <= MAX_WRITTEN:
                for recompute in self.recomputes():
                    yield Option(layout, name, chunks, recompute)

    def recomputes(self) -> tuple[Recompute, ...]:
        """Return which stages may recompute, the least first."""
        schedule = self.spec.schedule
        if schedule.leaves_recomputing_open and self.spec.is_open:
            return (Recompute.NONE, Recompute.ALL)
        if schedule.recompute_stages is not None or schedule.recompute_layers is not None:
            return (Recompute.GIVEN,)
        return (Recompute.ALL,) if schedule.recompute else (Recompute.NONE,)

    def _schedules(self, layout: Layout) -> Iterator[tuple[ScheduleName, int | None]]:
        schedule = self.spec.schedule
        if schedule.name is not ScheduleName.AUTO or not self.spec.is_open:
            family = described(schedule.name)
            is_fixed = schedule.virtual_stages is not None or not self.spec.is_open
            if is_fixed or not family.chunk_choice:
                yield schedule.name, schedule.virtual_stages
            else:
                yield from ((schedule.name, chunks) for chunks in self._chunks(family, layout.pipeline))
            return
        if layout.pipeline == 1:
            yield ScheduleName.ONE_F_ONE_B, None  # one stage has nothing to wait for
            return
        for family in FAMILIES.values():
            if not family.is_candidate:
                continue
            if family.chunk_choice:
                wanted = schedule.virtual_stages
                numbers = self._chunks(family, layout.pipeline) if wanted is None else iter((wanted,))
                yield from ((family.name, chunks) for chunks in numbers)
            elif schedule.virtual_stages in {None, family.usual_chunks} and (
                layout.pipeline * family.usual_chunks <= self.num_layers
            ):
                yield family.name, None

    def _chunks(self, family: Family, pipeline: int) -> Iterator[int]:
        for chunks in _CHUNKS:
            if pipeline * chunks <= self.num_layers and not (family.in_waves and chunks % 2):
                yield chunks


def _orders(num_groups: int) -> Iterator[tuple[int, ...]]:
    """Yield the orders in which some of the groups can stand along a chain."""
    for size in range(1, num_groups + 1):
        yield from permutations(range(num_groups), size)


def _rate(link: LinkKind) -> float:
    return link.bytes_per_s


@cache
def _sizes(sequences: int) -> tuple[int, ...]:
    divisors = {each for each in range(1, int(sequences**0.5) + 1) if sequences % each == 0}
    powers = {2**exponent for exponent in range(sequences.bit_length())}
    return tuple(sorted(divisors | {sequences // each for each in divisors} | powers))


def _compositions(total: int, most: list[int]) -> Iterator[tuple[int, ...]]:
    """Yield the ways to write a total as positive numbers, each within its bound."""
    if len(most) == 1:
        if 1 <= total <= most[0]:
            yield (total,)
        return
    for first in range(1, min(most[0], total - len(most) + 1) + 1):
        for rest in _compositions(total - first, most[1:]):
            yield (first, *rest)


def _places(seats: tuple[int, ...], rooms: list[int]) -> list[tuple[int, int]]:
    """Return each stage's node, by group and number, where a replica's stages fill one node after the other."""
    places = []
    for _, run in groupby(enumerate(seats), key=lambda each: each[1]):
        for index, (rank, seat) in enumerate(run):
            places.append((seat, index // max(1, rooms[rank])))
    return places


def _slowest(pool: Pool, precision: Precision) -> PoolGroup:
    slowest = min(pool.groups, key=lambda group: group.device.attained_flops(precision))
    memory = [group.device.memory_bytes for group in pool.groups if group.device.memory_bytes is not None]
    return replace(
        slowest,
        device=replace(slowest.device, memory_bytes=min(memory, default=None)),
        gpus_per_node=min(group.gpus_per_node for group in pool.groups),
        num_nodes=sum(group.num_nodes for group in pool.groups),
    )
