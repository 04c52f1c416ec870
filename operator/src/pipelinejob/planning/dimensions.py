"""What tensor parallelism and sharding can be of a model: refused alike by whoever validates, plans or runs a job.

Heads and inner widths are dealt out whole, each rank as many; a vocabulary is not, for ranks may
have a token more or less of it.
"""

from collections.abc import Iterator

from pipelinejob.base.errors import SpecError
from pipelinejob.models.decoder import Matrix, Role
from pipelinejob.planning.experts import unrunnable_experts
from pipelinejob.schedules.families import ASYNCHRONOUS, BOTH_WAYS, described
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Data, Model, Parallelism, Sharding, Training
from pipelinejob.spec.optimization import Optimizer
from pipelinejob.spec.training import Compile

_FIELD = "spec.parallelism.tensor"
SHARDING = "spec.parallelism.sharding"
_ELEMENTWISE = frozenset({Optimizer.ADAMW, Optimizer.SGD})
_NAMES = {
    Role.QUERY: "heads",
    Role.OUT: "heads",
    Role.KEY: "heads of keys and values",
    Role.VALUE: "heads of keys and values",
}


def undividable(model: Model, tensor: int | None) -> Iterator[SpecError]:
    """Return an error for each size of a model that so many ranks cannot share equally."""
    if tensor is None or tensor == 1 or not model.is_counted:
        return
    try:
        decoder = model.layer_sizes(1)
    except SpecError:  # of a config that lacks a size, which others say
        return
    if decoder is None:
        return
    matrices = (matrix for block in dict.fromkeys(decoder.blocks) for branch in block for matrix in branch.matrices)
    counts: dict[int, str] = {}  # of what is dealt out, by how many there are
    for matrix in matrices:
        if not matrix.is_whole:
            counts.setdefault(*_dealt_out(matrix))
    for count, what in counts.items():
        if count % tensor:
            yield SpecError(
                _FIELD,
                f"{tensor} ranks cannot share {count} {what} equally; use a divisor of {count}, or other sizes",
            )
    if decoder.vocabulary < tensor:
        yield SpecError(_FIELD, f"{tensor} ranks cannot share {decoder.vocabulary} tokens; use fewer")


def _dealt_out(matrix: Matrix) -> tuple[int, str]:
    what = _NAMES.get(matrix.role) if matrix.role is not None else None
    if matrix.units is not None:
        return matrix.units, what or "columns of a feed-forward layer"
    return matrix.inputs if matrix.is_last else matrix.outputs, what or "columns"


def unrunnable(
    model: Model, training: Training, schedule: ScheduleName, degrees: Parallelism, data: Data
) -> Iterator[SpecError]:
    """Return an error for each thing that can be planned with tensor or expert parallelism or sharding, but not run."""
    yield from _uncompiled(training, schedule)
    yield from _unsharded(training, schedule, degrees.sharding)
    yield from unrunnable_experts(model, training, schedule, degrees)
    if degrees.sharding is Sharding.FULL:
        yield from _not_gathered(model, training, schedule)
    tensor = degrees.tensor
    if tensor is None or tensor == 1:
        return
    if degrees.sequence_parallel:
        yield from _undivided_tokens(model, tensor, data)
    if model.built_in is None and model.hugging_face is None:
        yield SpecError(
            _FIELD,
            f"{tensor} can be planned, but the trainer divides built-in models (spec.model.gpt, spec.model.decoder) and"
            " Hugging Face folders alone; split this model into more pipeline stages instead",
        )
    if model.hugging_face is not None and not training.preflight:
        yield SpecError(
            "spec.training.preflight",
            f"with {_FIELD} = {tensor}, a Hugging Face model is divided by its family's own plan, and a few families'"
            " plans forget parameters, which only the preflight finds; leave it on, or use tensor: 1",
        )
    if training.compile is not Compile.OFF:
        yield SpecError(
            "spec.training.compile",
            f"{training.compile} compiles whole layers, and those of {_FIELD} = {tensor} ranks exchange parts in their"
            " midst; use Off, or tensor: 1",
        )
    if training.lora is not None:
        yield SpecError(
            "spec.training.lora", f"adapters are not divided over {_FIELD} = {tensor}; use 1, or no adapters"
        )
    if training.optimizer not in _ELEMENTWISE:
        yield SpecError(
            "spec.training.optimizer",
            f"{training.optimizer} looks at whole matrices, of which each of {_FIELD} = {tensor} ranks has a part; use"
            " AdamW or SGD",
        )
    if schedule in ASYNCHRONOUS:
        yield SpecError(
            "spec.schedule.name",
            f"{schedule} updates within a step, which is not tried with {_FIELD} = {tensor}; use 1, or a synchronous"
            " schedule such as 1F1B",
        )


def _undivided_tokens(model: Model, tensor: int, data: Data) -> Iterator[SpecError]:
    field = "spec.parallelism.sequenceParallel"
    if model.built_in is None:
        yield SpecError(
            field,
            "can be planned, but the trainer divides the tokens of built-in models alone (spec.model.gpt,"
            " spec.model.decoder); leave it out",
        )
    if data.sequence_length % tensor:
        yield SpecError(
            field,
            f"{tensor} ranks cannot share sequences of {data.sequence_length} tokens equally; use a multiple of"
            f" {tensor} for spec.data.sequenceLength, or leave it out",
        )


def _uncompiled(training: Training, schedule: ScheduleName) -> Iterator[SpecError]:
    if training.compile is Compile.LAYERS and described(schedule).is_split:
        yield SpecError("spec.training.compile", in_halves(schedule))


def in_halves(schedule: str) -> str:
    """Say why layers are not compiled under a schedule."""
    return (
        f"{schedule} has backward passes in halves, and a compiled layer has one function for both; use 1F1B or"
        " Interleaved1F1B, or Off"
    )


def _unsharded(training: Training, schedule: ScheduleName, sharding: Sharding) -> Iterator[SpecError]:
    if sharding is Sharding.NONE:
        return
    if training.optimizer not in _ELEMENTWISE:
        yield SpecError(
            SHARDING,
            f"{sharding} parts matrices anywhere, and {training.optimizer} looks at whole ones; use AdamW or SGD, or"
            " sharding: none",
        )
    if schedule in ASYNCHRONOUS:
        yield SpecError(
            SHARDING, f"{schedule} updates within a step, and has weight versions of whole parameters; use none"
        )


def _not_gathered(model: Model, training: Training, schedule: ScheduleName) -> Iterator[SpecError]:
    """Return an error for each thing with which parameters cannot be gathered layer by layer."""
    if model.built_in is None and model.hugging_face is None:
        yield SpecError(
            SHARDING,
            "full gathers a layer's parameters for its own passes alone, and nobody knows what else layers of your own"
            " do with them; use optimizer, or a built-in or Hugging Face model",
        )
    if training.lora is not None:
        yield SpecError(
            SHARDING,
            "full shards what is trained, and of adapters the model that they stand beside is not; use optimizer",
        )
    if schedule in BOTH_WAYS:
        yield SpecError(SHARDING, _held_twice(schedule))


def _held_twice(schedule: str) -> str:
    return (
        f"full: {schedule} holds each stage on two ranks of a pipeline, which need its layers at different times; use"
        f" {ScheduleName.DUALPIPE_V}, or optimizer"
    )


def shards(degrees: Parallelism, num_routes: int = 1) -> int:
    """Return how many ranks divide the optimiser's state of a stage: all that hold it, or one."""
    return 1 if degrees.sharding is Sharding.NONE else (degrees.data or 1) * num_routes


def weight_shards(degrees: Parallelism, num_routes: int = 1) -> int:
    """Return how many ranks divide a stage's parameters, or one.

    Raises SpecError where the schedule, which may be one of the user's own, holds stages twice.
    """
    if degrees.sharding is not Sharding.FULL:
        return 1
    if num_routes > 1:
        raise SpecError(SHARDING, _held_twice("the schedule"))
    return degrees.data or 1
