"""Measures what it gains that layers are run again before their gradient is there, on virtual compute.

    python tests/bench/trainer/bench_recompute.py [--ranks 4] [--rounds 5] [--output FILE.json]

One process a rank over gloo, every stage recomputes; forward, input gradient and weight gradient
take 40 ms each of plain torch (`calibration.py`). Our runtime plays every list twice: as it does,
and waiting for the gradient first, as frameworks do that recompute inside of autograd's backward
pass. Beside both, what the simulator says of them. Ends with 1 if a median is off its plan by more
than 3 %, or a step is not shorter than the one that waits first.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from unittest.mock import patch

from torch import distributed

import calibration
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
    write,
)
from pipelinejob.scheduler import catalogue
from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.costs import CostModel
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.simulation.result import Simulation
from pipelinejob_trainer.communication.process_groups import Groups, process_groups
from pipelinejob_trainer.runtime.tasks import TrainingTasks
from support.training.pipelines import Job

SHARE_MS = 40
PLAN_BOUND = 0.03
NAMES = (ScheduleName.ONE_F_ONE_B, ScheduleName.INTERLEAVED, ScheduleName.ZB_H1, ScheduleName.ZB_V)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured; handed to every process."""

    ranks: int
    rounds: int

    @property
    def micro_batches(self) -> tuple[int, ...]:
        return (self.ranks, 3 * self.ranks)

    @property
    def cases(self) -> Iterator[tuple[str, Schedule]]:
        for m in self.micro_batches:
            for name in NAMES:
                setting = Setting(
                    num_ranks=self.ranks, num_micro_batches=m, costs=even_costs(self.ranks, share_ms=SHARE_MS)
                )
                yield f"{name}, {m} micro-batches", catalogue.build(name, setting)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One schedule, with layers run again ahead of the gradient, and after it; a step is in seconds."""

    case: str
    plan: Simulation
    plan_behind: Simulation
    ahead: Measured
    behind: Measured

    @property
    def off_plan(self) -> tuple[float, float]:
        return self.ahead.median_s / self.plan.step_s - 1, self.behind.median_s / self.plan_behind.step_s - 1

    @property
    def problems(self) -> list[str]:
        found = ["off the plan"] if max(map(abs, self.off_plan)) > PLAN_BOUND else []
        return [*found, *(["not shorter"] if self.ahead.least_s >= self.behind.least_s else [])]


def recomputing(costs: CostModel, *, ahead: bool) -> CostModel:
    """Return the costs of stages that run their layers again on the way back."""

    def model(routes):
        found = costs(routes)
        again = replace(found, input_s=tuple(map(float.__add__, found.input_s, found.forward_s)))
        return replace(again, ahead_s=found.forward_s) if ahead else again

    return model


def players_of(case: str, job: Job, rank: int, groups: Groups) -> dict[str, Player]:
    """Return our runtime as it is, and one bound to do nothing ahead."""
    with patch.object(TrainingTasks, "ahead", return_value=None):
        behind = ours(job, rank, groups)
    return {f"{case}|ahead": ours(job, rank, groups), f"{case}|behind": behind}


def measure(rank: int, options: Options) -> dict[str, list]:
    """One process: play every schedule both ways, in turns."""
    groups = process_groups(pipeline=options.ranks, data=1)
    excess = calibration.by_chunks(SHARE_MS, sequence_length=Job.sequence_length)
    players: dict[str, Player] = {}
    for case, schedule in options.cases:
        job = even_job(schedule, share_ms=SHARE_MS, excess=excess[schedule.num_stages // options.ranks])
        players |= players_of(case, replace(job, recompute=True), rank, groups)
    samples = take_turns(players, options.rounds)
    distributed.barrier()
    return samples


def print_table(options: Options, rows: Sequence[Row]) -> None:
    """Print the table of docs/benchmarks.md."""
    print(
        f"p={options.ranks}, {SHARE_MS} ms each, {options.rounds} rounds; steps in s, least (median); load {load():.1f}"
    )
    print("| schedule | run again ahead | planned | gradient waited for first | planned | shorter by | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        gain = 1 - row.ahead.least_s / row.behind.least_s
        print(
            f"| {row.case} | {row.ahead} | {row.plan.step_s:.3f} | {row.behind} | {row.plan_behind.step_s:.3f}"
            f" | {gain:.1%} | {', '.join(row.problems) or 'holds'} |"
        )


def main() -> int:
    options = parser(__doc__, rounds=5, output="bench-recompute.json")
    options.add_argument("--ranks", type=int, default=4)
    given = options.parse_args()
    chosen = Options(ranks=given.ranks, rounds=given.rounds)
    measured = laid_together(launch(measure, chosen, world=chosen.ranks))
    costs = even_costs(chosen.ranks, share_ms=SHARE_MS)
    rows = [
        Row(
            case=case,
            plan=ideal(schedule, recomputing(costs, ahead=True)),
            plan_behind=ideal(schedule, recomputing(costs, ahead=False)),
            ahead=measured[f"{case}|ahead"],
            behind=measured[f"{case}|behind"],
        )
        for case, schedule in chosen.cases
    ]
    print_table(chosen, rows)
    write(
        given.output,
        {
            "options": asdict(chosen),
            "rows": [
                {
                    "case": row.case,
                    "planned_s": [row.plan.step_s, row.plan_behind.step_s],
                    "ahead": asdict(row.ahead),
                    "behind": asdict(row.behind),
                    "problems": row.problems,
                }
                for row in rows
            ],
        },
    )
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
