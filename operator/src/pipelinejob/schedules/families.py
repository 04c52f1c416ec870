"""Every schedule: its name, the function that makes it, and its facts.

A new schedule is a function in `makers/`, its name in `names.py`, and its description here; a test
holds that nothing else has to be told (tests/contract/additions/test_new_schedule.py).
"""

from pipelinejob.schedules.actions import ScheduleError
from pipelinejob.schedules.family import Family, RouteShape, Share, Sizes, Updates
from pipelinejob.schedules.makers import asynchronous, bidirectional, flush, interleaved, v_shaped, wave, zero_bubble
from pipelinejob.schedules.names import ScheduleName


def _forward(share: Share, _: int) -> float:
    return share.forward_s


def _held_interleaved(sizes: Sizes, rank: int) -> float | None:
    ranks, count, chunks = sizes
    if count % ranks:
        return None
    return min(count, ((chunks - 1) * ranks + 2 * (ranks - 1 - rank) + 1) / chunks)


_FAMILIES = (
    Family(
        name=ScheduleName.GPIPE,
        title="all forwards, then all backwards",
        source="Huang et al. 2019, arXiv 1811.06965",
        make=lambda s: flush.gpipe(s.num_ranks, s.num_micro_batches),
        held=lambda sizes, _: sizes.micro_batches,
        peak=lambda sizes: sizes.micro_batches,
    ),
    Family(
        name=ScheduleName.ONE_F_ONE_B,
        title="alternate forward and backward once warm; less memory than GPipe",
        source="Narayanan et al. 2021, arXiv 2006.09503",
        make=lambda s: flush.one_f_one_b(s.num_ranks, s.num_micro_batches),
        held=lambda sizes, rank: min(sizes.micro_batches, sizes.ranks - rank),
    ),
    Family(
        name=ScheduleName.INTERLEAVED,
        title="1F1B over several chunks a rank; a bubble v times as short",
        source="Narayanan et al. 2021, arXiv 2104.04473",
        make=lambda s: interleaved.interleaved_1f1b(s.num_ranks, s.num_micro_batches, s.chunks(2)),
        route=RouteShape.LOOPED,
        usual_chunks=2,
        chunk_choice=True,
        held=_held_interleaved,
        peak=lambda sizes: sizes.ranks + (sizes.ranks - 1) / sizes.chunks,
    ),
    Family(
        name=ScheduleName.LOOPED_BFS,
        title="all forwards chunk by chunk, then all backwards",
        source="Lamy-Poirier 2023, arXiv 2211.05953",
        make=lambda s: interleaved.looped_bfs(s.num_ranks, s.num_micro_batches, s.chunks(2)),
        route=RouteShape.LOOPED,
        usual_chunks=2,
        chunk_choice=True,
        held=lambda sizes, _: sizes.micro_batches,
        peak=lambda sizes: sizes.micro_batches,
    ),
    Family(
        name=ScheduleName.ZB_H1,
        title="1F1B with split backwards: a third of its bubble in the same memory",
        source="Qi et al. 2024, arXiv 2401.10241",
        make=lambda s: zero_bubble.zb_h1(s.num_ranks, s.num_micro_batches),
        is_split=True,
        takes_cap=True,
        filling=_forward,
    ),
    Family(
        name=ScheduleName.ZB_H2,
        title="no bubble within a rank's span, for twice the memory of 1F1B",
        source="Qi et al. 2024, arXiv 2401.10241",
        make=lambda s: zero_bubble.zb_h2(s.num_ranks, s.num_micro_batches),
        is_split=True,
        takes_cap=True,
        peak=lambda sizes: 2 * sizes.ranks - 1,
        filling=_forward,
    ),
    Family(
        name=ScheduleName.ZB_1P,
        title="split backwards where they cost least, within 1F1B's memory",
        source="Qi et al. 2024, arXiv 2401.10241",
        make=zero_bubble.zb_1p,
        is_split=True,
        looks_at_costs=True,
        takes_cap=True,
        filling=_forward,
    ),
    Family(
        name=ScheduleName.ZB_2P,
        title="split backwards where they cost least, within twice 1F1B's memory",
        source="Qi et al. 2024, arXiv 2401.10241",
        make=zero_bubble.zb_2p,
        is_split=True,
        looks_at_costs=True,
        takes_cap=True,
        peak=lambda sizes: 2 * sizes.ranks - 1,
        filling=_forward,
    ),
    Family(
        name=ScheduleName.ZB_V,
        title="split backwards along a V: no bubble within a rank's span at 1F1B's memory",
        source="Qi et al. 2024, arXiv 2401.10241",
        make=lambda s: v_shaped.zb_v(s.num_ranks, s.num_micro_batches),
        route=RouteShape.FOLDED,
        usual_chunks=2,
        is_split=True,
        takes_cap=True,
        filling=lambda share, _: share.forward_s / 2,
    ),
    Family(
        name=ScheduleName.V_HALF,
        title="split backwards along a V at half of 1F1B's memory",
        source="Qi et al. 2024, arXiv 2405.15362",
        make=lambda s: v_shaped.v_half(s.num_ranks, s.num_micro_batches),
        route=RouteShape.FOLDED,
        usual_chunks=2,
        is_split=True,
        peak=lambda sizes: sizes.ranks / 2 + 1,
        filling=lambda share, _: share.both_s / 2,
    ),
    Family(
        name=ScheduleName.V_MIN,
        title="split backwards along a V at a third of 1F1B's memory",
        source="Qi et al. 2024, arXiv 2405.15362",
        make=lambda s: v_shaped.v_min(s.num_ranks, s.num_micro_batches),
        route=RouteShape.FOLDED,
        usual_chunks=2,
        is_split=True,
        peak=lambda sizes: 2 * (sizes.ranks + 4) // 3 / 2,
        filling=lambda share, _: share.both_s * 2 / 3,
    ),
    Family(
        name=ScheduleName.DUALPIPE_V,
        title="DualPipe cut in half: along a V, weights once",
        source="DeepSeek-AI 2025, github.com/deepseek-ai/DualPipe",
        make=lambda s: v_shaped.dualpipe_v(s.num_ranks, s.num_micro_batches),
        route=RouteShape.FOLDED,
        usual_chunks=2,
        is_split=True,
        peak=lambda sizes: sizes.ranks + 1 / 2,
        filling=lambda share, _: share.both_s / 4,
    ),
    Family(
        name=ScheduleName.FORWARD_ONLY,
        title="forwards alone",
        source="evaluation and inference",
        make=lambda s: interleaved.forward_only(s.num_ranks, s.num_micro_batches, s.chunks(1)),
        route=RouteShape.LOOPED,
        chunk_choice=True,
        trains=False,
    ),
    Family(
        name=ScheduleName.DUALPIPE,
        title="both directions, each forward paired with the other direction's backward; two copies of the weights",
        source="DeepSeek-AI 2024, arXiv 2412.19437",
        make=bidirectional.dualpipe,
        route=RouteShape.BOTH_WAYS,
        is_split=True,
        peak=lambda sizes: sizes.ranks + 1,
        filling=lambda share, _: share.both_s / 4,
    ),
    Family(
        name=ScheduleName.HANAYO,
        title="1F1B in waves, the route turning round at both ends",
        source="Liu et al. 2023, arXiv 2308.15762",
        make=lambda s: wave.hanayo(s.num_ranks, s.num_micro_batches, s.chunks(2, least=2)),
        route=RouteShape.FOLDED,
        usual_chunks=2,
        chunk_choice=True,
        in_waves=True,
    ),
    Family(
        name=ScheduleName.CHIMERA,
        title="1F1B from both ends at once; two copies of the weights",
        source="Li and Hoefler 2021, arXiv 2107.06925",
        make=bidirectional.chimera,
        route=RouteShape.BOTH_WAYS,
        filling=lambda share, _: share.both_s / 2,
    ),
    Family(
        name=ScheduleName.PIPEDREAM,
        title="asynchronous: update after each micro-batch, stashing weights",
        source="Narayanan et al. 2019, arXiv 1806.03377",
        make=asynchronous.pipedream,
        updates=Updates.EACH_MICRO_BATCH,
    ),
    Family(
        name=ScheduleName.PIPEDREAM_2BW,
        title="asynchronous: update after each batch by gradients one batch late; two weight versions",
        source="Narayanan et al. 2021, arXiv 2006.09503",
        make=asynchronous.pipedream_2bw,
        updates=Updates.EACH_BATCH,
    ),
    Family(
        name=ScheduleName.AUTO,
        title="the best of all that fit the memory caps, improved for the costs",
        source="this project, docs/schedules.md",
        make=None,
        route=RouteShape.OPEN,
        chunk_choice=True,
        is_split=True,
        looks_at_costs=True,
        takes_cap=True,
    ),
)

FAMILIES = {family.name: family for family in _FAMILIES}

ASYNCHRONOUS = frozenset(family.name for family in _FAMILIES if family.is_asynchronous)
BOTH_WAYS = frozenset(family.name for family in _FAMILIES if family.route is RouteShape.BOTH_WAYS)

CUSTOM = Family(
    name=ScheduleName.CUSTOM,
    title="a schedule of your own",
    source="spec.schedule.actions",
    make=None,
    route=RouteShape.OPEN,
    is_split=True,  # as it may be
)


def described(name: ScheduleName) -> Family:
    """Return a schedule's description; `custom` has one that fits whatever is written."""
    return CUSTOM if name is ScheduleName.CUSTOM else FAMILIES[name]


def family(name: ScheduleName) -> Family:
    """Return the description of a schedule that can be asked for by its name alone.

    Raises ScheduleError for `custom`, which is given as actions, not made.
    """
    if name not in FAMILIES:
        raise ScheduleError(f"{name} is no schedule that can be made by name; use one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
