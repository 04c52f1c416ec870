"""Measures how close to its ideal every schedule is played, on virtual compute, beside torch and DeepSpeed.

    python tests/bench/trainer/bench_schedules.py [--ranks 4] [--rounds 5] [--schedules 1F1B,ZB-V] [--output FILE.json]

One process a rank over gloo; forward, input gradient and weight gradient of a rank's share take 40
ms each, of plain torch (`calibration.py`; with --bare-waits the waits alone do, and autograd comes
on top). The ideal is the simulator's, with nothing beside compute. torch plays its own schedule of
that name, where it has one, and our list, where it can; and our runtime plays torch's interleaved
zero bubble. The limit is the list's waits and messages with nothing else (`limit.py`): what this
machine takes for them longer than the ideal is nobody's to save. Ends with 1 if anything is out of
its bound: our least step within 2 % of the ideal (3 % from 8 ranks on), our median one within 3 %
of the plan, our bubble within 2 points of it, and our least step no longer than any peer's.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import distributed

import calibration
from calibration import Excess
from harness import (
    Measured,
    Player,
    even_costs,
    even_job,
    ideal,
    laid_together,
    launch,
    load,
    ours,
    parser,
    take_turns,
    torchs_runtime,
    write,
)
from limit import waits_and_messages
from peers import TORCHS_OWN, deepspeed, has_deepspeed, torchs_list, torchs_own, torchs_route
from pipelinejob.scheduler import catalogue
from pipelinejob.schedules.actions import F, Schedule, one_route
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.simulation.result import Simulation
from pipelinejob_trainer.communication.process_groups import process_groups
from pipelinejob_trainer.models.virtual import VOCABULARY_SIZE
from support.training.pipelines import Job
from support.training.torch_runtime import reason_against

SHARE_MS = 40  # as long as a stage of a large model takes; what a runtime costs by itself is a share of it
PLAN_BOUND, BUBBLE_BOUND = 0.03, 0.02
LIMIT = "limit"
TORCHS_ALONE = "InterleavedZeroBubble"  # a list that only torch makes


def ideal_bound(num_ranks: int) -> float:
    return 0.02 if num_ranks < 8 else 0.03


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured; handed to every process."""

    ranks: int
    micro_batches: int
    rounds: int
    share_ms: float
    is_calibrated: bool
    schedules: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is reported of one schedule; a step is in seconds."""

    schedule: str
    plan: Simulation
    ours: Measured
    limit: Measured
    peers: dict[str, Measured]

    @property
    def over_ideal(self) -> float:
        return self._over(self.ours)

    @property
    def limit_over_ideal(self) -> float:
        return self._over(self.limit)

    def _over(self, measured: Measured) -> float:
        return measured.least_s / self.plan.step_s - 1

    @property
    def off_plan(self) -> float:
        return self.ours.median_s / self.plan.step_s - 1

    @property
    def bubble(self) -> float:
        return min(self.ours.bubbles)

    @property
    def problems(self) -> list[str]:
        found = []
        if self.over_ideal > ideal_bound(self.plan.schedule.num_ranks):
            found.append("far from ideal")
        if abs(self.off_plan) > PLAN_BOUND or abs(self.bubble - self.plan.bubble_rate) > BUBBLE_BOUND:
            found.append("off the plan")
        found += [f"slower than {who}" for who, peer in self.peers.items() if peer.least_s < self.ours.least_s]
        return found

    @property
    def figures(self) -> dict[str, object]:
        return {
            "schedule": self.schedule,
            "ideal_s": self.plan.step_s,
            "bubble_planned": self.plan.bubble_rate,
            "ours": asdict(self.ours),
            "limit": asdict(self.limit),
            "peers": {who: asdict(peer) for who, peer in self.peers.items()},
            "problems": self.problems,
        }


def built(name: str, options: Options) -> Schedule:
    costs = even_costs(options.ranks, share_ms=options.share_ms)
    return catalogue.build(
        ScheduleName(name),
        Setting(num_ranks=options.ranks, num_micro_batches=options.micro_batches, costs=costs),
    )


def measure(rank: int, options: Options) -> tuple[dict[str, Schedule], dict[int, Excess], dict[str, list]]:
    """One process: play every schedule with every player, in turns."""
    groups = process_groups(pipeline=options.ranks, data=1)
    costs = even_costs(options.ranks, share_ms=options.share_ms)
    excess: dict[int, Excess] = {}
    if options.is_calibrated:
        excess = calibration.by_chunks(options.share_ms, sequence_length=Job.sequence_length)
    schedules: dict[str, Schedule] = {}
    players: dict[str, Player] = {}
    for name in options.schedules:
        schedule = borrowed(rank, options) if name == TORCHS_ALONE else built(name, options)
        job = even_job(schedule, share_ms=options.share_ms, excess=excess.get(schedule.num_stages // options.ranks))
        schedules[name] = schedule
        players[f"{name}|ours"] = ours(job, rank, groups)
        players[f"{name}|{LIMIT}"] = waits_and_messages(
            schedule, costs, rank, groups, message_shape=(1, job.data.sequence_length, VOCABULARY_SIZE)
        )
        if reason_against(schedule, job.rows) is None:
            players[f"{name}|torch, our list"] = torchs_runtime(job, rank)
        if name in TORCHS_OWN:
            players[f"{name}|torch, its own"] = torchs_own(name, job, rank)
        if name == ScheduleName.ONE_F_ONE_B and has_deepspeed():
            players[f"{name}|DeepSpeed"] = deepspeed(job, rank)
    samples = take_turns(players, options.rounds)
    distributed.barrier()
    return schedules, excess, samples


def borrowed(rank: int, options: Options) -> Schedule:
    """Return the list that only torch makes."""
    route = torchs_route(TORCHS_ALONE, options.ranks)
    places = one_route(
        route, [[F(k) for k in range(options.micro_batches)]] * options.ranks, options.micro_batches
    )  # of which only the route matters
    return torchs_list(TORCHS_ALONE, even_job(places, share_ms=options.share_ms), rank)


def report(options: Options, schedules: dict[str, Schedule], measured: dict[str, Measured]) -> list[Row]:
    costs = even_costs(options.ranks, share_ms=options.share_ms)
    rows = []
    for name, schedule in schedules.items():
        mine = {who: m for key, m in measured.items() for row, who in [key.split("|")] if row == name}
        rows.append(
            Row(schedule=name, plan=ideal(schedule, costs), ours=mine.pop("ours"), limit=mine.pop(LIMIT), peers=mine)
        )
    return rows


def print_calibration(excess: dict[int, Excess]) -> None:
    for chunks, each in excess.items():
        off = ", ".join(f"{name.removesuffix('_s')} {1e6 * value:.0f}" for name, value in asdict(each).items())
        print(f"{chunks} chunks a rank: µs that plain torch takes longer than the waits, which come off them: {off}")


def print_table(options: Options, rows: Sequence[Row]) -> None:
    """Print the table of docs/benchmarks.md."""
    print(
        f"p={options.ranks}, m={options.micro_batches}, {options.share_ms:g} ms each, {options.rounds} rounds; steps in"
        f" s, least (median); load {load():.1f}; DeepSpeed {'is' if has_deepspeed() else 'is NOT'} here"
    )
    whose = ("torch, its own", "torch, our list", "DeepSpeed")
    print(f"| schedule | ideal | ours | over | limit, over | bubble, planned | bubble | {' | '.join(whose)} | |")
    print("|---" * (8 + len(whose)) + "|")
    for row in rows:
        peers = " | ".join(str(row.peers.get(who, "")) for who in whose)
        print(
            f"| {row.schedule} | {row.plan.step_s:.3f} | {row.ours} | {row.over_ideal:.1%} | {row.limit_over_ideal:.1%}"
            f" | {row.plan.bubble_rate:.4f}"
            f" | {row.bubble:.4f} | {peers} | {', '.join(row.problems) or 'holds'} |"
        )


def main() -> int:
    names = [name for name in catalogue.FAMILIES if name is not ScheduleName.FORWARD_ONLY]
    options = parser(__doc__, rounds=5, output="bench-schedules.json")
    options.add_argument("--ranks", type=int, default=4)
    options.add_argument("--micro-batches", type=int, help="3 for each rank if unset")
    options.add_argument("--share-ms", type=float, default=SHARE_MS)
    options.add_argument(
        "--bare-waits", action="store_true", help="the waits alone take as long, autograd comes on top"
    )
    options.add_argument("--schedules", default=",".join([*names, TORCHS_ALONE]))
    given = options.parse_args()
    chosen = Options(
        ranks=given.ranks,
        micro_batches=given.micro_batches or 3 * given.ranks,
        rounds=given.rounds,
        share_ms=given.share_ms,
        is_calibrated=not given.bare_waits,
        schedules=tuple(given.schedules.split(",")),
    )
    results = launch(measure, chosen, world=chosen.ranks)
    schedules, excess, _ = results[0]
    rows = report(chosen, schedules, laid_together([samples for *_, samples in results]))
    print_calibration(excess)
    print_table(chosen, rows)
    write(given.output, {"options": asdict(chosen), "rows": [row.figures for row in rows]})
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
