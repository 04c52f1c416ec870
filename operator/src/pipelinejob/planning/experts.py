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
    nums = _numbers_of_experts(model)
    if not nums:
        yield SpecError(
            EXPERT,
            f"{expert} replicas are to divide the experts of spec.model.decoder, or of a folder's model, and this model"
            " has none, or is made of layers that hold all of theirs; leave it out",
        )
    for num in nums:
        if num % expert:
            yield SpecError(EXPERT, f"{expert} replicas cannot share {num} experts equally; use a divisor of {num}")


def unrunnable_experts(
    model: Model, training: Training, schedule: ScheduleName, degrees: Parallelism
) -> Iterator[SpecError]:
    """Return an error for each thing that divided experts do not go with."""
    if degrees.expert == 1:
        return
    if model.hugging_face is not None and not training.preflight:
        yield SpecError(
            "spec.training.preflight",
            f"with {EXPERT} = {degrees.expert}, a Hugging Face model's experts are divided by its family's own plan,"
            " which only the preflight holds against the whole model; leave it on, or leave expert out",
        )
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

    Raises SpecError where the schedule, which may be one that was searched for, holds stages
    twice.
    """
    if degrees.expert > 1 and num_routes > 1:
        raise SpecError(EXPERT, _held_twice("the schedule"))
    return degrees.expert


def _held_twice(schedule: str) -> str:
    return (
        f"{schedule} holds each stage on two ranks of a pipeline, and experts are divided over replicas of one; use"
        f" {ScheduleName.DUALPIPE_V}, or expert: 1"
    )


def _numbers_of_experts(model: Model) -> tuple[int, ...]:
    """Return how many experts a model's blocks have, each number once; 0 of a folder that nothing is known of."""
    try:
        decoder = model.layer_sizes(1)
    except SpecError:  # of a config that lacks a size, which others say
        return (0,)
    if decoder is None:
        return (0,) if model.hugging_face is not None else ()
    if model.decoder is None and model.hugging_face is None:
        return ()
    blocks = dict.fromkeys(decoder.blocks)
    matrices = (matrix for block in blocks for branch in block for matrix in branch.matrices)
    return tuple(dict.fromkeys(matrix.copies for matrix in matrices if matrix.is_experts))
