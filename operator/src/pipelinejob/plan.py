"""The plan: the contract between the operator, which makes it, and the trainer, which plays it.

It names its schedule and parameters, never every expanded action, so that it stays far below the 1 MiB of a config map.
"""

from enum import StrEnum
from typing import Literal

from pipelinejob.spec import Checkpoint, Data, Device, Model, Parallelism, Schedule, Training
from pipelinejob.values import Value


class CostSource(StrEnum):
    """Where the predicted times come from."""

    ANALYTIC = "analytic"  # counted floating-point operations over a nominal device speed
    PROFILED = "profiled"  # measured on the device that will do the work
    EQUAL = "equal"  # nothing is known of a user's own layers: all alike, a millisecond each; only ratios mean anything


class StagePlan(Value):
    """One stage: its layers [first_layer, end_layer) and what is expected of it, for one micro-batch or one step."""

    stage: int
    first_layer: int
    end_layer: int
    forward_s: float
    backward_s: float
    optimizer_s: float = 0.0  # each step
    output_bytes: int  # sent to the next stage, each micro-batch; 0 for the last
    parameter_bytes: int  # fp32 parameters
    memory_bytes: int  # predicted peak: parameters, gradients, optimiser state, activations in flight
    bubble_ratio: float  # predicted, timeline.bubble_ratio


class Prediction(Value):
    """What is expected of the whole job. Predictions, all of them."""

    step_s: float
    tokens_per_s: float
    bubble_ratio: float  # mean over stages
    concurrency: int | None = None  # ranks that truly compute at once, where fewer than all can
    source: CostSource

    @property
    def is_absolute(self) -> bool:
        """Say whether seconds and bytes were predicted; of layers that merely count as equal only ratios were."""
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


class Plan(Value):
    """Everything a trainer needs, and everything that was promised."""

    version: Literal[1] = 1
    namespace: str
    name: str
    model: Model
    data: Data
    parallelism: Parallelism
    schedule: Schedule
    training: Training
    checkpoint: Checkpoint
    device: Device
    stages: tuple[StagePlan, ...]
    prediction: Prediction
    placement: Placement | None = None

    def to_json(self) -> str:
        """Serialise; `from_json` reads it back to an equal plan."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """Read a plan.

        Raises pydantic.ValidationError for a plan of another version or shape.
        """
        return cls.model_validate_json(text)
