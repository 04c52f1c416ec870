"""The plan: the contract between the operator, which makes it, and the trainer, which plays it.

It stays far below the 1 MiB of a config map: a schedule that follows from its name and sizes is
rebuilt from them, one that depends on costs or was written by hand travels packed
(`playing.schedule_of` gives either).
"""

from enum import StrEnum
from typing import Literal

from pipelinejob.base.values import Value
from pipelinejob.schedules.recomputation import Recomputing, how_much
from pipelinejob.spec.job import (
    Checkpoint,
    Data,
    Device,
    Evaluation,
    Model,
    Parallelism,
    Recovery,
    ScheduleSpec,
    Serving,
    Training,
)


class CostSource(StrEnum):
    """Where the predicted times come from."""

    ANALYTIC = "analytic"  # counted floating-point operations over a nominal device speed
    PROFILED = "profiled"  # measured on the device that will do the work
    EQUAL = "equal"  # nothing is known of a user's own layers: all alike, a millisecond each; only ratios mean anything


LayerRange = tuple[int, int]  # [first, end)


class StagePlan(Value):
    """One rank of a pipeline, which is one pod: what it holds, and what is expected of it.

    `chunks` are the ranges of layers that it holds, in the order of `Schedule.held_by`, each once.
    Seconds are a micro-batch's in all of them together; where micro-batches take several routes,
    their mean.
    """

    stage: int
    chunks: tuple[LayerRange, ...]
    forward_s: float
    backward_input_s: float
    backward_weight_s: float
    optimizer_s: float = 0.0  # each update
    output_bytes: int  # sent to other ranks on the way forward, each micro-batch
    exchanged_bytes: int | None = None  # sent to replicas for their experts, there and back, each micro-batch; None: 0
    parameter_bytes: int  # fp32 parameters
    weight_bytes: int | None = None  # of those that are trained, what is held between passes; None: all
    gradient_bytes: int | None = None  # of those that are trained; None: of all
    optimizer_bytes: int | None = None  # the optimiser's state; None: two moments of each
    memory_bytes: int  # predicted peak: parameters, gradients, optimiser state, activations in flight
    bubble_ratio: float  # predicted, timeline.bubble_ratio
    recompute: bool = False  # whether anything is computed again
    recompute_layers: tuple[int, ...] | None = None  # how many first layers of each of its chunks; None: all, if any
    device: str | None = None  # the device kind (hardware.py) that the prediction is for, where one is known
    speed: float = 1.0  # of the device, relative to that of the costs

    @property
    def backward_s(self) -> float:
        """Return the seconds of a full backward pass."""
        return self.backward_input_s + self.backward_weight_s

    def recomputed(self, chunk: LayerRange) -> int:
        """Return how many first layers of one of its chunks are computed again."""
        if not self.recompute:
            return 0
        return chunk[1] - chunk[0] if self.recompute_layers is None else self.recompute_layers[self.chunks.index(chunk)]

    @property
    def num_recomputed(self) -> int:
        """Count the layers that are computed again."""
        return sum(map(self.recomputed, self.chunks))

    @property
    def recomputing(self) -> Recomputing:
        """How much is computed again."""
        return how_much(self.num_recomputed, self.num_layers)

    @property
    def recompute_text(self) -> str:
        """What is computed again, for people: `none`, `selective, 3 of 8 layers`, `full`."""
        of_all = f", {self.num_recomputed} of {self.num_layers} layers"
        return f"{self.recomputing}{of_all * (self.recomputing is Recomputing.SELECTIVE)}"

    @property
    def num_layers(self) -> int:
        """Count the layers that the rank holds."""
        return sum(end - first for first, end in self.chunks)


class Served(Value):
    """What was, or will be, of a number of requests.

    Means over requests; `utilization` is each stage's busy time over all.
    """

    first_token_s: float
    per_token_s: float
    tokens_per_s: float
    utilization: tuple[float, ...]


class ServedAt(Served):
    """The same of so many requests at once, each with so many tokens in its prompt, and as many in its answer."""

    requests: int
    tokens: int


class Prediction(Value):
    """What is expected of the whole job. Predictions, all of them.

    Of a job that serves, `serving` is; the rest is of the step that planning shares its layers by.
    """

    step_s: float
    tokens_per_s: float
    bubble_ratio: float  # mean over stages
    closest_step_s: float | None = None  # the same if all that talk were on the closest links; if links are known
    concurrency: int | None = None  # ranks that truly compute at once, where fewer than all can
    source: CostSource
    serving: tuple[ServedAt, ...] = ()  # at several loads, the smallest first

    @property
    def is_absolute(self) -> bool:
        """Tell whether seconds and bytes were predicted; of layers that merely count as equal only ratios were."""
        return self.source is not CostSource.EQUAL


class Assignment(Value):
    """Where one rank goes. `path` names its domains from coarse to fine, the node last."""

    replica: int
    stage: int
    node: str
    path: tuple[str, ...]


class Placement(Value):
    """Where every rank goes, and how many neighbouring stages are parted at each level of the topology."""

    assignments: tuple[Assignment, ...]
    crossings: dict[str, int]  # level -> stage boundaries that cross it
    penalty_s: float | None = None  # predicted: what a step is longer by than with all on the closest links
    best_penalty_s: float | None = None  # the least of it that any place would have cost with what was free
    room_left: dict[str, int] = {}  # level -> stages like these that still fit into one of its domains  # noqa: RUF012
    trade: str | None = None  # what a step longer than the least was taken for, in one sentence


class LinkPlan(Value):
    """What is expected to join two stages of a replica, or, where both are one, the replicas of that stage."""

    between: tuple[int, int]  # in every replica; of its links the slowest
    kind: str
    latency_s: float
    bytes_per_s: float


class Plan(Value):
    """Everything a trainer needs, and everything that was promised.

    `cuts` are the layers of each stage of a route, first stage first; `stages` what each rank
    holds of them. `schedule_actions` is the schedule's text form, packed, where it does not follow
    from `schedule` alone.
    """

    version: Literal[2] = 2
    namespace: str
    name: str
    model: Model
    data: Data
    parallelism: Parallelism
    schedule: ScheduleSpec
    training: Training
    evaluation: Evaluation | None = None
    serving: Serving | None = None  # where the model is served: then data, schedule and training are planning's alone
    checkpoint: Checkpoint
    recovery: Recovery | None = None  # None: a lost stage ends the attempt
    hang_timeout_seconds: int | None = None  # of the failure policy; None: by how long steps take
    device: Device
    cuts: tuple[LayerRange, ...]
    stages: tuple[StagePlan, ...]
    schedule_actions: str | None = None
    prediction: Prediction
    placement: Placement | None = None
    links: tuple[LinkPlan, ...] = ()  # where they are known

    @property
    def shares_processors(self) -> bool:
        """Tell whether fewer ranks than all truly compute at once."""
        at_once = self.prediction.concurrency
        return at_once is not None and at_once < self.parallelism.pipeline * self.parallelism.data

    @property
    def penalty_s(self) -> float | None:
        """Return what a step is longer by, as predicted, than with all on the closest links; None where none are known.

        This is simulated with all links at once. A placement's own `penalty_s` adds up what each
        would cost alone: places are compared by that, but it is too much where several slow links
        are waited for at the same time.
        """
        closest_s = self.prediction.closest_step_s
        return None if closest_s is None else max(0.0, self.prediction.step_s - closest_s)

    @property
    def least_penalty_s(self) -> float | None:
        """Return a bound below which no place would have brought that, with what was free."""
        placement, penalty_s = self.placement, self.penalty_s
        if placement is None or penalty_s is None or placement.penalty_s is None or placement.best_penalty_s is None:
            return None
        return max(0.0, penalty_s - max(0.0, placement.penalty_s - placement.best_penalty_s))

    def to_json(self) -> str:
        """Serialise; `from_json` reads it back to an equal plan."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Read a plan.

        Raises pydantic.ValidationError for a plan of another version or shape.
        """
        return cls.model_validate_json(text)
