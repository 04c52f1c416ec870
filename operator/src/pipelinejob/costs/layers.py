"""What layers cost: the values that partition, simulator and planner reckon with, whoever measured or derived them.

Measured costs come from the trainer. `analytic_profile` derives costs from a model's sizes before
anything ran: operations and bytes as `counts` has them, over speeds of a device as `hardware` has
them. Those are predictions, and say so (`CostSource.ANALYTIC`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pydantic import model_validator

from pipelinejob.base.values import Value
from pipelinejob.contract.plan import CostSource
from pipelinejob.costs.adapters import count_adapted
from pipelinejob.fabric.hardware import Hardware, default
from pipelinejob.models.counts import BF16_BYTES, FP32_BYTES, Batch, Count, count
from pipelinejob.models.decoder import Decoder
from pipelinejob.schedules.families import described
from pipelinejob.spec.job import Data, Device, Lora, Model, Optimizer, Precision, ScheduleSpec, Training
from pipelinejob.spec.optimization import MuonSettings
from pipelinejob.spec.training import Compile


class LayerCost(Value):
    """One layer, for one micro-batch of the job's schedule. Seconds are of one stage working alone on its device.

    A full backward pass takes both halves.
    """

    name: str
    forward_s: float
    backward_input_s: float  # the gradient of what the layer receives
    backward_weight_s: float  # the gradients of its parameters
    optimizer_s: float = 0.0  # each update
    parameter_bytes: int  # fp32 parameters that are trained
    expert_bytes: int = 0  # of these, those of experts that replicas divide
    frozen_bytes: int = 0  # parameters that are not, as they are held
    optimizer_bytes: int | None = None  # the optimiser's state; None: AdamW's two moments
    cast_bytes: int = 0  # copies of them in the arithmetic's precision, kept while they do not change
    activation_bytes: int  # kept from forward to backward
    shared_bytes: int = 0  # of these, what a stage's layers that keep as much of it keep once for all of them
    between_bytes: int | None = None  # kept between the halves of a split backward; None: as much as from forward on
    working_bytes: int = 0  # beside what it keeps, while a pass lasts: temporaries, gradients on their way
    output_bytes: int  # what the next layer receives
    exchanged_bytes: int = 0  # sent to other replicas, whose experts these tokens meet; as many come back, on each way
    announced_bytes: int = 0  # sent before, on the way forward: how many come

    @model_validator(mode="before")
    @classmethod
    def _halve(cls, value: Any) -> Any:
        # Profiles measured before the backward pass was split know only the whole of it. A
        # product's two gradients cost alike, so halves are the best guess; the sum, which is all
        # that unsplit schedules look at, stays as measured.
        if isinstance(value, dict) and "backwardS" in value:
            half = value["backwardS"] / 2
            rest = {key: other for key, other in value.items() if key != "backwardS"}
            return {"backwardInputS": half, "backwardWeightS": half, **rest}
        return value

    @property
    def backward_s(self) -> float:
        """Return the seconds of a full backward pass."""
        return self.backward_input_s + self.backward_weight_s

    @property
    def compute_s(self) -> float:
        """Return the seconds of one micro-batch, there and back."""
        return self.forward_s + self.backward_s

    @property
    def own_bytes(self) -> int:
        """Return what it keeps from forward to backward for itself alone."""
        return self.activation_bytes - self.shared_bytes

    @property
    def moment_bytes(self) -> int:
        """What the optimiser keeps of its parameters."""
        return 2 * self.parameter_bytes if self.optimizer_bytes is None else self.optimizer_bytes

    @property
    def expert_share(self) -> Fraction:
        """The share of its parameters, and so of what an update reads and writes, that divided experts have."""
        return Fraction(self.expert_bytes, self.parameter_bytes or 1)

    @property
    def state_bytes(self) -> int:
        """What the layer takes whatever is in flight: fp32 parameters, gradients, the optimiser's state, and casts.

        Of a frozen parameter it is the parameter alone.
        """
        return 2 * self.parameter_bytes + self.moment_bytes + self.frozen_bytes + self.cast_bytes


class Profile(Value):
    """The costs of a model's layers, in order, and of the places and links they run on.

    `concurrency` is how many stages of one node truly compute at once (processor cores over
    threads of a stage, of all replicas, which are taken to stand there together); None means each
    has its own device. `link_s` and `link_bytes_per_s` describe one hop between neighbouring
    stages. `action_s` is the rank's own book-keeping for each action, outside the layers: spans,
    receives posted, sends begun.
    """

    source: CostSource
    layers: tuple[LayerCost, ...]
    micro_batch_size: int | None = None  # sequences of the micro-batch that was measured; None: as the job has it
    concurrency: int | None = None
    availability: float = 1.0  # the share of those processors that was to be had when the costs were measured
    link_s: float = 0.0
    link_bytes_per_s: float | None = None
    action_s: float = 0.0
    step_overhead_s: float = 0.0  # each step, outside the schedule: data, norm all-reduce, book-keeping
    stage_speeds: tuple[float, ...] | None = None  # relative to the device of the costs; unset: all alike
    optimizer: Optimizer = Optimizer.ADAMW  # that updates and state are of
    table_moments: int = 2  # `Training.table_moments`
    is_compiled: bool = False  # whether the layers that were measured were compiled
    expert: int = 1  # replicas that divide experts, of which layers hold their part
    device: str | None = None  # the device kind (hardware.py) that the seconds are of, where one is known
    device_memory_bytes: int | None = None  # of each stage; the partition keeps within it
    stage_memory_bytes: tuple[int, ...] | None = None  # of each stage, where they differ; counts before the one above
    process_bytes: int | None = None  # what a stage's process takes before it holds a layer, of memory as runs count it

    def concurrency_of(self, replicas: int) -> float | None:
        """Return how many processors each of so many replicas, which do the same at the same time, has for itself."""
        return None if self.concurrency is None else self.concurrency * self.availability / replicas

    def memory_limits(self, num_ranks: int) -> tuple[int, ...] | None:
        """Return the bytes that each rank's device holds; None where that is no bound."""
        if self.stage_memory_bytes is not None:
            return self.stage_memory_bytes
        return None if self.device_memory_bytes is None else (self.device_memory_bytes,) * num_ranks


def kept_bytes(layers: Sequence[LayerCost]) -> int:
    """Return what layers that run together keep from forward to backward: what they share, once."""
    return sum(layer.own_bytes for layer in layers) + max((layer.shared_bytes for layer in layers), default=0)


_EQUAL_S = 1e-3
# What an update reads and writes of each parameter: itself, its gradient, its moments, and
# temporaries.
_PASSES = {Optimizer.ADAMW: 7, Optimizer.SGD: 3, Optimizer.ADAFACTOR: 9, Optimizer.MUON: 9}
_MOMENTUM_PASSES = 2


def layer_names(model: Model) -> tuple[str, ...]:
    """Name the layers of the global list that is split over the stages: embedding, block-0 ..., head; or layer-0 ..."""
    decoder = model.layer_sizes(1)
    if decoder is not None:
        return decoder.layer_names
    assert model.num_layers is not None, "the spec demands numLayers beside entrypoint and huggingFace"
    return tuple(f"layer-{i}" for i in range(model.num_layers))


def analytic_profile(
    model: Model,
    data: Data,
    schedule: ScheduleSpec,
    training: Training,
    *,
    device: Device,
    product: str = "",
    tensor: int = 1,
    is_sequence_parallel: bool = False,
    expert: int = 1,
    hardware: Hardware | None = None,
) -> Profile:
    """Derive a profile from sizes and data sheets.

    `product` is what a node label calls the device, or a device kind's name. With `tensor` GPUs to
    a stage every figure is of one of them, the seconds with what they exchange; where they are
    sequence parallel, they divide the stream too; of experts that `expert` replicas divide each
    has its share. Of layers without a config (a user's own, or a Hugging Face folder's) nothing is
    known but their number: they count as equal; seconds and bytes mean nothing. Raises SpecError
    for a config that lacks a size.
    """
    decoder = model.layer_sizes(data.sequence_length)
    if decoder is None:
        return Profile(
            source=CostSource.EQUAL,
            layers=tuple(map(_equal_layer, layer_names(model))),
            optimizer=training.optimizer,
            table_moments=training.table_moments,
            expert=expert,
        )
    known = hardware or default()
    kind = known.reckoned_as(device, product)
    batch = Batch(
        tokens=schedule.micro_batch_size * data.sequence_length,
        sequence_length=data.sequence_length,
        element_bytes=FP32_BYTES if training.precision is Precision.FP32 else BF16_BYTES,
        tensor=tensor,
        stream_parts=tensor if is_sequence_parallel else 1,
        expert=expert,
        is_split=described(schedule.name).is_split,
    )
    link, network = known.link_of(kind), known.network_of(kind)
    pace = _Pace(
        flops=kind.attained_flops(training.precision),
        memory_bytes_per_s=kind.memory_bytes_per_s,
        link_s=link.latency_s,
        link_bytes_per_s=link.bytes_per_s,
        tensor=tensor,
    )
    layers = _layers(decoder, batch, pace, _State.of(training), training.lora)
    return Profile(
        source=CostSource.ANALYTIC,
        layers=tuple(map(_at_once, layers)) if training.compile is Compile.LAYERS else layers,
        optimizer=training.optimizer,
        table_moments=training.table_moments,
        expert=expert,
        link_s=network.latency_s,
        link_bytes_per_s=network.bytes_per_s,
        device=kind.name,
        device_memory_bytes=kind.memory_bytes,
    )


@lru_cache(maxsize=256)  # a search asks a thousand times for some tens of sizes
def _layers(decoder: Decoder, batch: Batch, pace: "_Pace", state: "_State", lora: Lora | None) -> tuple[LayerCost, ...]:
    counted = count(decoder, batch) if lora is None else count_adapted(decoder, batch, lora)
    alike = {id(each): each for each in counted}  # blocks that are alike are one object
    costs = {key: _layer(each, pace, batch, state) for key, each in alike.items()}
    return tuple(
        costs[id(each)].model_copy(update={"name": name})
        for name, each in zip(decoder.layer_names, counted, strict=True)
    )


def _at_once(layer: LayerCost) -> LayerCost:
    """Return the costs of a compiled layer, whose first half of a backward pass is all of it."""
    return layer.model_copy(update={"backward_input_s": layer.backward_s, "backward_weight_s": 0.0, "between_bytes": 0})


def _equal_layer(name: str) -> LayerCost:
    return LayerCost(
        name=name,
        forward_s=_EQUAL_S,
        backward_input_s=_EQUAL_S,
        backward_weight_s=_EQUAL_S,
        parameter_bytes=0,
        activation_bytes=0,
        output_bytes=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pace:
    """How quickly a device, and the group of GPUs that share its layers, work through what was counted."""

    flops: float  # operations a second
    memory_bytes_per_s: float
    link_s: float  # between GPUs of the group
    link_bytes_per_s: float
    tensor: int

    def products_s(self, operations: float, matrix_bytes: float) -> float:
        """The seconds of products: their operations', or, of few tokens, those in which the matrices are read."""
        return max(operations / self.flops, self.traffic_s(matrix_bytes))

    def traffic_s(self, num_bytes: float) -> float:
        """Return the seconds in which so many bytes go through the device's memory."""
        return num_bytes / self.memory_bytes_per_s

    def gather_s(self, num_bytes: float) -> float:
        """The seconds in which a group gathers, or sums and scatters, so many bytes: a ring without one member."""
        steps = self.tensor - 1
        return steps * self.link_s + steps / self.tensor * num_bytes / self.link_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What an optimiser keeps, and what its updates take; `iterations` are Muon's, of each hidden matrix."""

    optimizer: Optimizer
    moments: int
    iterations: int

    @classmethod
    def of(cls, training: Training) -> "_State":
        muon = training.muon or MuonSettings()
        iterations = muon.steps if training.optimizer is Optimizer.MUON else 0
        return cls(optimizer=training.optimizer, moments=training.table_moments, iterations=iterations)

    def bytes_of(self, counted: Count) -> int:
        if self.optimizer is Optimizer.ADAFACTOR:
            return counted.factored * FP32_BYTES
        hidden = counted.hidden_parameters if self.optimizer is Optimizer.MUON else 0
        return (self.moments * (counted.parameters - hidden) + hidden) * FP32_BYTES

    def seconds_of(self, counted: Count, pace: _Pace) -> float:
        passes = _PASSES[self.optimizer]
        if self.optimizer is Optimizer.SGD:
            passes += _MOMENTUM_PASSES * self.moments
        orthogonal_s = self.iterations * counted.gram_operations / pace.flops
        return passes * pace.traffic_s(counted.parameters * FP32_BYTES) + orthogonal_s


def _layer(counted: Count, pace: _Pace, batch: Batch, state: _State) -> LayerCost:
    """Turn counts into seconds: of products, and of the memory traffic of all that lies between them.

    What is kept was written, and read again by what comes next; gradients of parameters are read
    and written to add up.
    """
    between_s = pace.traffic_s(2 * (counted.activation_bytes + counted.output_bytes))
    is_frozen = counted.weight_products is not None
    trained_matrices = counted.parameters if is_frozen else counted.matrix_parameters
    weight_products = counted.products if counted.weight_products is None else counted.weight_products
    added_s = pace.traffic_s(2 * FP32_BYTES * trained_matrices)
    group_s = counted.collectives * pace.gather_s(counted.gathered_bytes)
    products, scores, matrix_bytes = counted.products, counted.scores, counted.matrix_parameters * batch.element_bytes
    back_s = 0.0 if counted.is_lookup else pace.products_s(products + 2 * scores, matrix_bytes) + between_s
    return LayerCost(
        name="",
        forward_s=pace.products_s(products + scores, matrix_bytes) + between_s + group_s,
        backward_input_s=back_s + group_s,
        backward_weight_s=weight_products / pace.flops + added_s,
        optimizer_s=state.seconds_of(counted, pace),
        parameter_bytes=counted.parameters * FP32_BYTES,
        expert_bytes=counted.expert_parameters * FP32_BYTES,
        frozen_bytes=counted.frozen_bytes,
        optimizer_bytes=state.bytes_of(counted),
        cast_bytes=trained_matrices * batch.element_bytes if batch.element_bytes < FP32_BYTES else 0,
        activation_bytes=counted.activation_bytes,
        between_bytes=counted.between_bytes,
        working_bytes=counted.working_bytes,
        output_bytes=counted.output_bytes,
        exchanged_bytes=counted.exchanged_bytes,
        announced_bytes=counted.announced_bytes,
    )
