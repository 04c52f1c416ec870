"""Makes any schedule by its name."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from pipelinejob.scheduler import auto
from pipelinejob.schedules.actions import Schedule, ScheduleError
from pipelinejob.schedules.families import FAMILIES, family
from pipelinejob.schedules.family import Family
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting

__all__ = ["FAMILIES", "Family", "build", "family", "named"]


def named(setting: Setting) -> Iterator[Schedule]:
    """Make every synchronous schedule that exists for a setting, `auto` aside.

    Interleaved ones have two chunks where no number is asked for; those that look at costs are
    made with the setting's caps and without.
    """
    uncapped = replace(setting, activation_caps=None)
    for each in FAMILIES.values():
        if not each.is_candidate or each.make is None:
            continue
        if setting.num_chunks not in {None, each.usual_chunks} and not each.chunk_choice:
            continue
        with suppress(ScheduleError):  # not for these sizes
            yield each.make(setting)
            if each.looks_at_costs and setting.activation_caps is not None:
                yield each.make(uncapped)


def build(name: ScheduleName, setting: Setting) -> Schedule:
    """Make a schedule.

    Raises ScheduleError when the schedule does not exist for these sizes, saying which do.
    """
    found = family(name)
    if setting.num_chunks not in {None, found.usual_chunks} and not found.chunk_choice:
        raise ScheduleError(
            f"{name} has {found.usual_chunks} chunk{'s' * (found.usual_chunks != 1)} on each rank, not"
            f" {setting.num_chunks}; leave the number out, or use Interleaved1F1B"
        )
    return auto.search(setting, named).schedule if found.make is None else found.make(setting)
