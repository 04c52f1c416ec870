"""What layers cost: the values that partition, simulator and planner reckon with, whoever measured or derived them.

Measured costs come from the trainer. `analytic_profile` derives costs from a model's sizes before anything ran:
operations and bytes counted exactly, over nominal speeds of a device. Those are predictions, and say so
(`CostSource.ANALYTIC`).
"""

from dataclasses import dataclass
from typing import Any

from pydantic import model_validator

from pipelinejob.hardware import DeviceKind, Hardware, default
from pipelinejob.plan import CostSource
from pipelinejob.spec import Data, Device, GptModel, Model, Precision, ScheduleSpec, Training
from pipelinejob.values import Value


class LayerCost(Value):
    """One layer, for one micro-batch of the job's schedule. Seconds are of one stage working alone on its device.

    A full backward pass takes both halves.
    """

    name: str
    forward_s: float
    backward_input_s: float  # the gradient of what the layer receives
    backward_weight_s: float  # the gradients of its parameters
    optimizer_s: float = 0.0  # each update
    parameter_bytes: int  # fp32 parameters
    activation_bytes: int  # kept from forward to backward
    between_bytes: int | None = None  # kept between the halves of a split backward; None: as much as from forward on
    working_bytes: int = 0  # beside what it keeps, while a pass lasts: temporaries, gradients on their way
    output_bytes: int  # what the next layer receives

    @model_validator(mode="before")
    @classmethod
    def _halve(cls, value: Any) -> Any:
        # Profiles measured before the backward pass was split know only the whole of it. A product's two gradients cost
        # alike, so halves are the best guess; the sum, which is all that unsplit schedules look at, stays as measured.
        if isinstance(value, dict) and "backwardS" in value:
            half = value["backwardS"] / 2
            rest = {key: other for key, other in value.items() if key != "backwardS"}
            return {"backwardInputS": half, "backwardWeightS": half, **rest}
        return value

    @property
    def backward_s(self) -> float:
        """Give the seconds of a full backward pass."""
        return self.backward_input_s + self.backward_weight_s

    @property
    def compute_s(self) -> float:
        """Give the seconds of one micro-batch, there and back."""
        return self.forward_s + self.backward_s

    @property
    def state_bytes(self) -> int:
        """Give what the layer takes whatever is in flight: fp32 parameter, gradient, and the two moments of AdamW."""
        return 4 * self.parameter_bytes


class Profile(Value):
    """The costs of a model's layers, in order, and of the places and links they run on.

    `concurrency` is how many stages of one node truly compute at once (processor cores over threads of a stage); None
    means each has its own device. `link_s` and `link_bytes_per_s` describe one hop between neighbouring stages.
    `action_s` is the rank's own book-keeping for each action, outside the layers: spans, receives posted, sends begun.
    """

    source: CostSource
    layers: tuple[LayerCost, ...]
    concurrency: int | None = None
    link_s: float = 0.0
    link_bytes_per_s: float | None = None
    action_s: float = 0.0
    step_overhead_s: float = 0.0  # each step, outside the schedule: data, norm all-reduce, book-keeping
    stage_speeds: tuple[float, ...] | None = None  # relative to the device of the costs; unset: all alike
    device: str | None = None  # the device kind (hardware.py) that the seconds are of, where one is known
    device_memory_bytes: int | None = None  # of each stage; the partition keeps within it
    stage_memory_bytes: tuple[int, ...] | None = None  # of each stage, where they differ; counts before the one above

    def memory_limits(self, num_ranks: int) -> tuple[int, ...] | None:
        """Give the bytes that each rank's device holds; None where that is no bound."""
        if self.stage_memory_bytes is not None:
            return self.stage_memory_bytes
        return None if self.device_memory_bytes is None else (self.device_memory_bytes,) * num_ranks


_EQUAL_FORWARD_S = 1e-3
_FP32_BYTES = 4


def layer_names(model: Model) -> tuple[str, ...]:
    """Name the layers of the global list that is split over the stages: embedding, block-0 ..., head; or layer-0 ..."""
    if model.gpt is not None:
        return ("embedding", *(f"block-{i}" for i in range(model.gpt.num_layers)), "head")
    assert model.num_layers is not None, "the spec demands numLayers beside entrypoint"
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
    hardware: Hardware | None = None,
) -> Profile:
    """Derive a profile from sizes and data sheets.

    `product` is what a node label calls the device, or a device kind's name. Of a user's own layers nothing is known
    but their number: they count as equal; seconds and bytes mean nothing.
    """
    if model.gpt is None:
        return Profile(source=CostSource.EQUAL, layers=tuple(map(_equal_layer, layer_names(model))))
    known = hardware or default()
    kind = known.reckoned_as(device, product)
    tokens = schedule.micro_batch_size * data.sequence_length
    shape = _Shape(model.gpt, tokens=tokens, sequence=data.sequence_length, precision=training.precision)
    counts = (shape.embedding(), *[shape.block()] * model.gpt.num_layers, shape.head())
    network = known.network_of(kind)
    return Profile(
        source=CostSource.ANALYTIC,
        layers=tuple(
            _layer(name, count, kind, training.precision, tensor)
            for name, count in zip(layer_names(model), counts, strict=True)
        ),
        link_s=network.latency_s,
        link_bytes_per_s=network.bytes_per_s,
        device=kind.name,
        device_memory_bytes=kind.memory_bytes,
    )


def _equal_layer(name: str) -> LayerCost:
    return LayerCost(
        name=name,
        forward_s=_EQUAL_FORWARD_S,
        backward_input_s=_EQUAL_FORWARD_S,
        backward_weight_s=_EQUAL_FORWARD_S,
        parameter_bytes=0,
        activation_bytes=0,
        output_bytes=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    """What a layer does and keeps, for one micro-batch.

    Operations are of a forward pass: `products` with matrices of parameters, whose gradients by input and by weight
    take as many again each, and `scores`, products of two activations, whose two gradients are both by input.
    """

    parameters: int
    products: int
    scores: int = 0
    is_lookup: bool = False  # has no gradient by input
    activation_bytes: int
    output_bytes: int


class _Shape:
    """Counts of a GPT's layers. h is the width, f of the feed-forward layer, s the sequence, n tokens of a micro-batch.

    A product of n tokens with a matrix of k parameters takes 2nk operations; scores and mixing of attention take 2nsh
    each (Narayanan et al. 2021, arXiv 2104.04473, appendix). What is kept for the backward pass follows Korthikanti et
    al. 2022 (arXiv 2205.05198, section 4.1), whose 34sbh + 5as^2b bytes a block become, without dropout and with
    attention that keeps no s x s matrix: 8nh + 2nf elements, two nh of them (the residual stream, as both norms receive
    it) fp32 always. Dropout adds a mask of one byte an element: on each of a block's two branches, and the embedding.
    """

    def __init__(self, model: GptModel, *, tokens: int, sequence: int, precision: Precision) -> None:
        self.h = model.hidden_size
        self.f = model.feed_forward_size or 4 * self.h
        self.v = model.vocabulary_size
        self.n = tokens
        self.s = sequence
        self.mask_bytes = tokens * self.h if model.dropout else 0
        self.element = _FP32_BYTES if precision is Precision.FP32 else 2  # of what matrices multiply

    @property
    def stream_bytes(self) -> int:
        """Give the residual stream's size; it stays fp32 under autocast, between stages too."""
        return self.n * self.h * _FP32_BYTES

    def embedding(self) -> _Count:
        """Count token and position tables; a look-up and an addition."""
        return _Count(
            parameters=self.v * self.h + self.s * self.h,
            products=self.n * self.h,
            is_lookup=True,
            activation_bytes=self.n * 8 + self.mask_bytes,  # the tokens, as 64-bit numbers
            output_bytes=self.stream_bytes,
        )

    def block(self) -> _Count:
        """Count attention (4h^2 parameters), feed-forward layer (2hf), their biases and two norms."""
        h, f, n = self.h, self.f, self.n
        return _Count(
            parameters=4 * h * h + 4 * h + 2 * h * f + h + f + 4 * h,
            products=2 * n * (4 * h * h + 2 * h * f),
            scores=4 * n * self.s * h,
            activation_bytes=2 * self.stream_bytes + n * (6 * h + 2 * f) * self.element + 2 * self.mask_bytes,
            output_bytes=self.stream_bytes,
        )

    def head(self) -> _Count:
        """Count the last norm, the product with the vocabulary, and the loss, which keeps fp32 log-probabilities."""
        h, n, v = self.h, self.n, self.v
        return _Count(
            parameters=2 * h + h * v,
            products=2 * n * h * v,
            activation_bytes=self.stream_bytes + n * h * self.element + n * v * (self.element + _FP32_BYTES),
            output_bytes=n * v * self.element,
        )


def _layer(name: str, count: _Count, device: DeviceKind, precision: Precision, tensor: int) -> LayerCost:
    """Turn counts into seconds: a pass takes as long as its operations or its memory traffic, whichever is longer."""
    parameter_bytes = count.parameters * _FP32_BYTES // tensor
    traffic_s = (count.activation_bytes + count.output_bytes) / tensor / device.memory_bytes_per_s

    def pass_s(operations: int) -> float:
        return max(operations / tensor / device.attained_flops(precision), traffic_s)

    return LayerCost(
        name=name,
        forward_s=pass_s(count.products + count.scores),
        backward_input_s=0.0 if count.is_lookup else pass_s(count.products + 2 * count.scores),
        backward_weight_s=pass_s(count.products),
        optimizer_s=7 * parameter_bytes / device.memory_bytes_per_s,  # AdamW reads four numbers and writes three
        parameter_bytes=parameter_bytes,
        activation_bytes=count.activation_bytes // tensor,
        output_bytes=count.output_bytes // tensor,
    )
