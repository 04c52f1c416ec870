"""Which schedule a plan means: what trainer, simulator and report play."""

import base64
import binascii
import zlib

from pipelinejob.plan import Plan
from pipelinejob.schedule_spec import ScheduleSpec
from pipelinejob.schedules.actions import Schedule, ScheduleError
from pipelinejob.schedules.catalogue import build
from pipelinejob.schedules.costs import CostModel
from pipelinejob.schedules.setting import Setting
from pipelinejob.schedules.text import parse, render


def schedule_of(plan: Plan) -> Schedule:
    """Give the schedule that every rank of a plan plays its list of.

    Raises ScheduleError for a plan whose schedule cannot be read or built, which `planner.make_plan` makes none of.
    """
    if plan.schedule_actions is not None:
        return parse(unpacked(plan.schedule_actions))
    return build(plan.schedule.name, setting_of(plan.schedule, plan.parallelism.pipeline))


def setting_of(
    spec: ScheduleSpec,
    num_ranks: int,
    *,
    costs: CostModel | None = None,
    activation_caps: tuple[float, ...] | None = None,
) -> Setting:
    """Give what a spec's schedule is made for; `activation_caps` where the spec has no memoryCap of its own."""
    caps = activation_caps if spec.memory_cap is None else spread(spec.memory_cap, num_ranks)
    return Setting(
        num_ranks=num_ranks,
        num_micro_batches=spec.micro_batches,
        num_chunks=spec.virtual_stages,
        costs=costs,
        activation_caps=caps,
        update_interval=spec.update_interval,
        vertical_sync=spec.vertical_sync,
    )


def spread(caps: tuple[float, ...], num_ranks: int) -> tuple[float, ...]:
    """Give each rank its cap; a single one is every rank's."""
    return caps * num_ranks if len(caps) == 1 else caps


def packed(schedule: Schedule) -> str:
    """Give a schedule's text form, compressed; `unpacked` gives the text back."""
    return base64.b64encode(zlib.compress(render(schedule).encode(), level=9)).decode()


def unpacked(text: str) -> str:
    """Give the text form that `packed` compressed.

    Raises ScheduleError.
    """
    try:
        return zlib.decompress(base64.b64decode(text, validate=True)).decode()
    except (binascii.Error, zlib.error, UnicodeDecodeError) as error:
        raise ScheduleError(f"the plan's schedule cannot be unpacked: {error}") from error
