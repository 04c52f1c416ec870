"""What expert parallelism can be of a job: refused alike by whoever validates, plans or runs it.

Each `expert` consecutive replicas divide the experts of every block, each holding as many.
"""

from collections.abc import Iterator

from pipelinejob.base.errors import SpecError
from pipelinejob.schedules.families import ASYNCHRONOUS, BOTH_WAYS
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Model, Parallelism, Training
from pipelinejob.spec.optimization import Optimizer
from pipelinejob.spec.training import Compile

EXPERT = "spec.parallelism.expert"
_ELEMENTWISE = frozenset({Optimizer.ADAMW, Optimizer.SGD})


def undividable_experts(model: Model, degrees: Parallelism) -> Iterator[SpecError]:
    """Return an error for each number that so many replicas cannot share equally, or a model without experts."""
    expert, data = degrees.expert, degrees.data or 1
    if expert == 1:
        return
    if data % expert:
        yield SpecError(
            EXPERT, f"{data} replicas make no whole groups of {expert} that divide experts; use a divisor of {data}"
        )
    if model.decoder is None or model.decoder.experts is None:
        yield SpecError(
            EXPERT,
            f"{expert} replicas are to divide the experts of spec.model.decoder, and this model has none, or is made of"
            " layers that hold all of theirs; leave it out",
        )
    elif model.decoder.experts.num % expert:
        num = model.decoder.experts.num
        yield SpecError(EXPERT, f"{expert} replicas cannot share {num} experts equally; use a divisor of {num}")


def unrunnable_experts(training: Training, schedule: ScheduleName, degrees: Parallelism) -> Iterator[SpecError]:
    """Return an error for each thing that divided experts do not go with."""
    if degrees.expert == 1:
        return
    if degrees.tensor not in {None, 1}:
        yield SpecError(EXPERT, f"{degrees.expert} does not go with tensor: {degrees.tensor} yet; use one of them")
    if training.lora is not None:
        yield SpecError(EXPERT, "divides what is trained, and adapters stand beside all experts; use no adapters, or 1")
    if training.compile is not Compile.OFF:
        yield SpecError(
            "spec.training.compile",
            f"{training.compile} compiles whole layers, and with {EXPERT} = {degrees.expert} replicas exchange tokens"
            " in their midst; use Off, or expert: 1",
        )
    if training.optimizer not in _ELEMENTWISE:
        yield SpecError(
            "spec.training.optimizer",
            f"{training.optimizer} is not tried with {EXPERT} = {degrees.expert}, where a replica has some experts"
            " alone; use AdamW or SGD",
        )
    if schedule in ASYNCHRONOUS:
        yield SpecError(
            "spec.schedule.name",
            f"{schedule} updates within a step, which does not go with {EXPERT} = {degrees.expert}; use 1, or a"
            " synchronous schedule such as 1F1B",
        )
    if schedule is ScheduleName.CUSTOM:
        yield SpecError(EXPERT, "does not go with custom, which may update within a step; use a schedule with a name")
    if schedule in BOTH_WAYS:
        yield SpecError(EXPERT, _held_twice(schedule))


def expert_ranks(degrees: Parallelism, num_routes: int = 1) -> int:
    """Return how many replicas divide experts, or one.

    Raises SpecError where the schedule, which may be one that was searched for, holds stages twice.
    """
    if degrees.expert > 1 and num_routes > 1:
        raise SpecError(EXPERT, _held_twice("the schedule"))
    return degrees.expert


def _held_twice(schedule: str) -> str:
    return (
        f"{schedule} holds each stage on two ranks of a pipeline, and experts are divided over replicas of one; use"
        f" {ScheduleName.DUALPIPE_V}, or expert: 1"
    )
