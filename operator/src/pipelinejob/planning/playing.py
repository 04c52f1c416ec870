"""The schedule of a plan, as trainer, simulator and report execute it."""

import base64
import binascii
import zlib
from collections.abc import Iterable, Iterator
from math import lcm

from pipelinejob.base.errors import SpecError
from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import layer_names
from pipelinejob.scheduler.catalogue import build
from pipelinejob.schedules.actions import Schedule, ScheduleError
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import parse, render
from pipelinejob.schedules.validate import validate
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.schedules.schedule import ScheduleSpec

ACTIONS = "spec.schedule.actions"


def schedule_of(plan: Plan) -> Schedule:
    """Return the schedule whose lists of actions the plan's ranks execute.

    Raises ScheduleError for a plan whose schedule cannot be read or built, which
    `planner.make_plan` makes none of.
    """
    if plan.schedule_actions is not None:
        return parse(unpacked(plan.schedule_actions))
    return build(plan.schedule.name, setting_of(plan.schedule, plan.parallelism.pipeline))


def setting_of(spec: ScheduleSpec, num_ranks: int) -> Setting:
    """Return the setting of a spec's schedule, without costs; a single memoryCap holds for every rank."""
    caps = spec.memory_cap
    return Setting(
        num_ranks=num_ranks,
        num_micro_batches=spec.micro_batches,
        num_chunks=spec.virtual_stages,
        activation_caps=caps * num_ranks if caps is not None and len(caps) == 1 else caps,
        update_interval=spec.update_interval,
        vertical_sync=spec.vertical_sync,
    )


def few(schedule: ScheduleSpec, num_ranks: int) -> int:
    """Return a number of micro-batches that shows how a step begins and ends, and some of its middle."""
    count, period = schedule.micro_batches, round_of(schedule, num_ranks)
    return min(count, 2 * period + count % period)


def round_of(schedule: ScheduleSpec, num_ranks: int) -> int:
    """Return the micro-batches after which a schedule repeats itself: by ranks, by pairs, by asynchronous updates."""
    return lcm(2 * num_ranks, schedule.update_interval or 1)


def written_schedule(spec: PipelineJobSpec) -> Schedule:
    """Return the schedule that a spec's own `actions` describe, validated.

    Raises SpecError where they cannot be read or played, or do not go with the rest of the spec.
    """
    assert spec.schedule.actions is not None, "the CRD demands actions with custom"
    try:
        schedule = parse(spec.schedule.actions)
        validate(schedule)
    except ScheduleError as error:
        raise SpecError(ACTIONS, str(error)) from error
    problem = next(_written_problems(schedule, spec), None)
    if problem is not None:
        raise SpecError(ACTIONS, problem)
    return schedule


def _written_problems(schedule: Schedule, spec: PipelineJobSpec) -> Iterator[str]:
    num_ranks, num_micro_batches = spec.parallelism.pipeline, spec.schedule.micro_batches
    if schedule.num_ranks != num_ranks:
        yield f"{schedule.num_ranks} lines of actions for {num_ranks} stages; write one for each"
    if schedule.num_micro_batches != num_micro_batches:
        yield (
            f"the actions are of {schedule.num_micro_batches} micro-batches but microBatches is {num_micro_batches};"
            " make them equal"
        )
    num_layers = len(layer_names(spec.model))
    if schedule.num_stages > num_layers:
        yield f"the route has {schedule.num_stages} stages, which cannot share {num_layers} layers; make it shorter"
    if schedule.is_forward_only:
        yield "there are only forwards, which train nothing; add backwards, as in F0 B0"
    if not schedule.is_asynchronous:
        return
    if spec.training.clip_norm:
        yield (
            "weights are updated within the step, when the gradients' global norm is not known; set"
            " spec.training.clipNorm to 0, or leave out the O actions"
        )
    if spec.model.tied_bytes:
        yield (
            "weights are updated within the step, and the two copies of a tied embedding would drift apart; set"
            " tieEmbeddings to false, or leave out the O actions"
        )
    if spec.schedule.batch_size is not None:
        yield "asynchronous updates gather whole micro-batches; leave batchSize out, or leave out the O actions"


def check_caps(name: ScheduleName, schedule: Schedule, caps: tuple[float, ...] | None) -> None:
    """Raise SpecError if a stage holds more than a spec's memoryCap."""
    if caps is not None:
        check_peaks(name, peak_activations(schedule), caps)


def check_peaks(name: ScheduleName, peaks: Iterable[float], caps: tuple[float, ...]) -> None:
    """Raise SpecError if a stage's activations, in micro-batches, are more than a spec's memoryCap."""
    for stage, (peak, cap) in enumerate(zip(peaks, caps, strict=True)):
        if peak > cap:
            raise SpecError(
                "spec.schedule.memoryCap",
                f"{name} holds the activations of {peak:g} micro-batches on stage {stage}, more than {cap:g}; raise the"
                " cap, or use auto",
            )


def packed(schedule: Schedule) -> str:
    """Return a schedule's text form, compressed; `unpacked` gives the text back."""
    return base64.b64encode(zlib.compress(render(schedule).encode(), level=9)).decode()


def unpacked(text: str) -> str:
    """Return the text form that `packed` compressed.

    Raises ScheduleError.
    """
    try:
        return zlib.decompress(base64.b64decode(text, validate=True)).decode()
    except (binascii.Error, zlib.error, UnicodeDecodeError) as error:
        raise ScheduleError(f"the plan's schedule cannot be unpacked: {error}") from error
