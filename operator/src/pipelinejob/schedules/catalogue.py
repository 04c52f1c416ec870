"""Every schedule by name: what it is, and how it is made."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from pipelinejob.schedules import asynchronous, auto, bidirectional, flush, interleaved, v_shaped, wave, zero_bubble
from pipelinejob.schedules.actions import Schedule, ScheduleError
from pipelinejob.schedules.names import ASYNCHRONOUS, ScheduleName
from pipelinejob.schedules.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is known of a schedule before it is made.

    `is_split`: backward passes are done in two halves. `looks_at_costs`: the list depends on `Setting.costs`.
    `usual_chunks` is v where none is asked for; `chunk_choice` says whether another one can be.
    """

    name: ScheduleName
    title: str
    source: str
    make: Callable[[Setting], Schedule]
    usual_chunks: int = 1
    chunk_choice: bool = False
    is_split: bool = False
    looks_at_costs: bool = False


_FAMILIES = (
    Family(
        name=ScheduleName.GPIPE,
        title="all forwards, then all backwards",
        source="Huang et al. 2019, arXiv 1811.06965",
        make=lambda s: flush.gpipe(s.num_ranks, s.num_micro_batches),
    ),
    Family(
        name=ScheduleName.ONE_F_ONE_B,
        title="alternate forward and backward once warm; less memory than GPipe",
        source="Narayanan et al. 2021, arXiv 2006.09503",
        make=lambda s: flush.one_f_one_b(s.num_ranks, s.num_micro_batches),
    ),
    Family(
        name=ScheduleName.INTERLEAVED,
        title="1F1B over several chunks a rank; a bubble v times as short",
        source="Narayanan et al. 2021, arXiv 2104.04473",
        make=lambda s: interleaved.interleaved_1f1b(s.num_ranks, s.num_micro_batches, s.chunks(2)),
        usual_chunks=2,
        chunk_choice=True,
    ),
    Family(
        name=ScheduleName.LOOPED_BFS,
        title="all forwards chunk by chunk, then all backwards",
        source="Lamy-Poirier 2023, arXiv 2211.05953",
        make=lambda s: interleaved.looped_bfs(s.num_ranks, s.num_micro_batches, s.chunks(2)),
        usual_chunks=2,
        chunk_choice=True,
    ),
    Family(
        name=ScheduleName.ZB_H1,
        title="1F1B with split backwards: a third of its bubble in the same memory",
        source="Qi et al. 2024, arXiv 2401.10241",
        make=lambda s: zero_bubble.zb_h1(s.num_ranks, s.num_micro_batches),
        is_split=True,
    ),
    Family(
        name=ScheduleName.ZB_H2,
        title="no bubble within a rank's span, for twice the memory of 1F1B",
        source="Qi et al. 2024, arXiv 2401.10241",
        make=lambda s: zero_bubble.zb_h2(s.num_ranks, s.num_micro_batches),
        is_split=True,
    ),
    Family(
        name=ScheduleName.ZB_1P,
        title="split backwards where they cost least, within 1F1B's memory",
        source="Qi et al. 2024, arXiv 2401.10241",
        make=zero_bubble.zb_1p,
        is_split=True,
        looks_at_costs=True,
    ),
    Family(
        name=ScheduleName.ZB_2P,
        title="split backwards where they cost least, within twice 1F1B's memory",
        source="Qi et al. 2024, arXiv 2401.10241",
        make=zero_bubble.zb_2p,
        is_split=True,
        looks_at_costs=True,
    ),
    Family(
        name=ScheduleName.ZB_V,
        title="split backwards along a V: no bubble within a rank's span at 1F1B's memory",
        source="Qi et al. 2024, arXiv 2401.10241",
        make=lambda s: v_shaped.zb_v(s.num_ranks, s.num_micro_batches),
        usual_chunks=2,
        is_split=True,
    ),
    Family(
        name=ScheduleName.V_HALF,
        title="split backwards along a V at half of 1F1B's memory",
        source="Qi et al. 2024, arXiv 2405.15362",
        make=lambda s: v_shaped.v_half(s.num_ranks, s.num_micro_batches),
        usual_chunks=2,
        is_split=True,
    ),
    Family(
        name=ScheduleName.V_MIN,
        title="split backwards along a V at a third of 1F1B's memory",
        source="Qi et al. 2024, arXiv 2405.15362",
        make=lambda s: v_shaped.v_min(s.num_ranks, s.num_micro_batches),
        usual_chunks=2,
        is_split=True,
    ),
    Family(
        name=ScheduleName.DUALPIPE_V,
        title="DualPipe cut in half: along a V, weights once",
        source="DeepSeek-AI 2025, github.com/deepseek-ai/DualPipe",
        make=lambda s: v_shaped.dualpipe_v(s.num_ranks, s.num_micro_batches),
        usual_chunks=2,
        is_split=True,
    ),
    Family(
        name=ScheduleName.FORWARD_ONLY,
        title="forwards alone",
        source="evaluation and inference",
        make=lambda s: interleaved.forward_only(s.num_ranks, s.num_micro_batches, s.chunks(1)),
        chunk_choice=True,
    ),
    Family(
        name=ScheduleName.DUALPIPE,
        title="both directions, each forward paired with the other direction's backward; two copies of the weights",
        source="DeepSeek-AI 2024, arXiv 2412.19437",
        make=bidirectional.dualpipe,
        is_split=True,
    ),
    Family(
        name=ScheduleName.HANAYO,
        title="1F1B in waves, the route turning round at both ends",
        source="Liu et al. 2023, arXiv 2308.15762",
        make=lambda s: wave.hanayo(s.num_ranks, s.num_micro_batches, s.chunks(2, least=2)),
        usual_chunks=2,
        chunk_choice=True,
    ),
    Family(
        name=ScheduleName.CHIMERA,
        title="1F1B from both ends at once; two copies of the weights",
        source="Li and Hoefler 2021, arXiv 2107.06925",
        make=bidirectional.chimera,
    ),
    Family(
        name=ScheduleName.PIPEDREAM,
        title="asynchronous: update after each micro-batch, stashing weights",
        source="Narayanan et al. 2019, arXiv 1806.03377",
        make=asynchronous.pipedream,
    ),
    Family(
        name=ScheduleName.PIPEDREAM_2BW,
        title="asynchronous: update after each batch by gradients one batch late; two weight versions",
        source="Narayanan et al. 2021, arXiv 2006.09503",
        make=asynchronous.pipedream_2bw,
    ),
    Family(
        name=ScheduleName.AUTO,
        title="the best of all that fit the memory caps, improved for the costs",
        source="this project, docs/schedules.md",
        make=lambda s: auto.search(s, named).schedule,
        chunk_choice=True,
        is_split=True,
        looks_at_costs=True,
    ),
)

FAMILIES = {family.name: family for family in _FAMILIES}


def named(setting: Setting) -> Iterator[Schedule]:
    """Make every synchronous schedule that exists for a setting, `auto` aside.

    Interleaved ones have two chunks where no number is asked for; those that look at costs are made with the setting's
    caps and without.
    """
    uncapped = replace(setting, activation_caps=None)
    for each in _FAMILIES:
        if each.name in ASYNCHRONOUS | {ScheduleName.FORWARD_ONLY, ScheduleName.AUTO}:
            continue
        if setting.num_chunks not in {None, each.usual_chunks} and not each.chunk_choice:
            continue
        with suppress(ScheduleError):  # not for these sizes
            yield each.make(setting)
            if each.looks_at_costs and setting.activation_caps is not None:
                yield each.make(uncapped)


def family(name: ScheduleName) -> Family:
    """Give what is known of a schedule.

    Raises ScheduleError for `custom`, which is given as actions, not made.
    """
    if name not in FAMILIES:
        raise ScheduleError(f"{name} is no schedule that can be made by name; use one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


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
    return found.make(setting)
