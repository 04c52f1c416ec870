"""Measures the bubble of a balanced pipeline on virtual compute, beside theory, prediction and torch's own schedules.

    python tests/bench/bench_bubble.py [--rounds 5] [--output bench-bubble.json]

Four processes over gloo. In each round every case is played by this project's runtime and by torch's pipelining, in an
order that alternates, in the same processes, on the same layers. Ends with 1 if a median is out of its bound: the
measured bubble within 2 points of (p-1)/(m+p-1), the predicted step time within 5 % of the measured one.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import pipelining

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelinejob.schedule import build

from pipelinejob.simulate import simulate
from pipelinejob.spec import Model, ScheduleName
from pipelinejob.timeline import SpanKind, bubble_ratio
from pipelinejob_trainer.models import build_layers
from pipelinejob_trainer.parallel import connect, process_groups
from pipelinejob_trainer.stage import cross_entropy
from pipelines import CPU, Job, make_runtime, run_processes

STAGES = 4
# As long as a stage of a large model takes; what the runtime itself costs per action is a share of them.
FORWARD_MS, BACKWARD_MS = 40, 80
BUBBLE_BOUND, PREDICTION_BOUND = 0.02, 0.05
CASES = list(product(ScheduleName, (8, 32)))

# A round's step of one runtime: its seconds, and the stage's bubble where the runtime knows it.
Play = Callable[[int], tuple[float, float | None]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is reported of one case."""

    schedule: str
    micro_batches: int
    bubble_theory: float
    bubble_measured: float  # mean over stages, of spans; median over rounds
    bubble_spread: tuple[float, float]
    step_predicted_s: float
    step_s: float
    step_spread_s: tuple[float, float]
    torch_step_s: float
    torch_step_spread_s: tuple[float, float]

    @property
    def holds(self) -> bool:
        bubble_error = abs(self.bubble_measured - self.bubble_theory)
        return bubble_error <= BUBBLE_BOUND and abs(self.step_predicted_s / self.step_s - 1) <= PREDICTION_BOUND


def job_of(schedule: ScheduleName, micro_batches: int, text: Path) -> Job:
    arguments = {"forward_ms": str(FORWARD_MS), "backward_ms": str(BACKWARD_MS), "layers": str(STAGES)}
    model = Model(entrypoint="pipelinejob_trainer.models.virtual:layers", num_layers=STAGES, arguments=arguments)
    return Job(
        text=text,
        model=model,
        stages=STAGES,
        schedule=schedule,
        micro_batches=micro_batches,
        micro_batch_size=1,
    )


def measure(rank: int, text: Path, rounds: int) -> dict[str, list[tuple[float, float | None]]]:
    """One process: play every case `rounds` times with either runtime; the first round only warms up."""
    groups = process_groups(pipeline=STAGES, data=1)
    plays: dict[str, Play] = {}
    for schedule, micro_batches in CASES:
        job = job_of(schedule, micro_batches, text)
        links = connect(groups, pipeline=STAGES, data=1, device=CPU)
        plays[f"ours {schedule} {micro_batches}"] = our_play(job, rank, links)
        plays[f"torch {schedule} {micro_batches}"] = torch_play(job, rank)
    measured: dict[str, list[tuple[float, float | None]]] = {name: [] for name in plays}
    for number in range(rounds + 1):
        for name in sorted(plays, reverse=bool(number % 2)):
            distributed.barrier()
            result = plays[name](number + 1)
            if number:
                measured[name].append(result)
    return measured


def our_play(job: Job, rank: int, links: Any) -> Play:
    """Give what plays a step with this project's runtime, up to the barrier that ends a step."""

    def play(step: int) -> tuple[float, float | None]:
        # A recorder goes on from step to step; here other runtimes' steps lie between.
        _, recorder, runtime = made
        recorder.restart()
        start_s = time.perf_counter()
        runtime.run_step(step)
        with recorder.span(SpanKind.IDLE, cause="drain"):
            distributed.barrier()
        timeline = recorder.finish_step()
        assert timeline is not None
        return time.perf_counter() - start_s, bubble_ratio(timeline.spans)

    made = make_runtime(job, rank=rank, links=links)
    return play


def torch_play(job: Job, rank: int) -> Play:
    """Give what plays a step with torch.distributed.pipelining, up to the same barrier."""
    module = nn.Sequential(
        *(entry.module for entry in build_layers(job.model, job.data, first=rank, end=rank + 1, seed=job.seed))
    )
    stage = pipelining.PipelineStage(module, rank, STAGES, CPU)
    kinds = {ScheduleName.GPIPE: pipelining.ScheduleGPipe, ScheduleName.ONE_F_ONE_B: pipelining.Schedule1F1B}
    schedule = kinds[job.schedule](stage, n_microbatches=job.micro_batches, loss_fn=cross_entropy)
    dataset = job.dataset()

    def play(step: int) -> tuple[float, float | None]:
        start_s = time.perf_counter()
        batches = [dataset.batch(step, 0, micro_batch) for micro_batch in range(job.micro_batches)]
        inputs, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        if rank == 0:
            schedule.step(inputs)
        elif rank == STAGES - 1:
            schedule.step(target=targets)
        else:
            schedule.step()
        distributed.barrier()
        return time.perf_counter() - start_s, None

    return play


def report(ranks: list[dict[str, list[tuple[float, float | None]]]]) -> list[Row]:
    """Lay the ranks' measurements together: a step is as long as on its slowest rank, a bubble the mean over stages."""
    rows = []
    for schedule, m in CASES:
        steps, torch_steps = (
            [
                max(seconds)
                for seconds in zip(*([s for s, _ in rank[f"{who} {schedule} {m}"]] for rank in ranks), strict=True)
            ]
            for who in ("ours", "torch")
        )
        bubbles = [
            sum(ratios) / STAGES
            for ratios in zip(*([b or 0.0 for _, b in rank[f"ours {schedule} {m}"]] for rank in ranks), strict=True)
        ]
        predicted = simulate(
            build(schedule, STAGES, m), forward_s=[FORWARD_MS / 1e3] * STAGES, backward_s=[BACKWARD_MS / 1e3] * STAGES
        )
        rows.append(
            Row(
                schedule=schedule,
                micro_batches=m,
                bubble_theory=(STAGES - 1) / (m + STAGES - 1),
                bubble_measured=median(bubbles),
                bubble_spread=(min(bubbles), max(bubbles)),
                step_predicted_s=predicted.makespan_s,
                step_s=median(steps),
                step_spread_s=(min(steps), max(steps)),
                torch_step_s=median(torch_steps),
                torch_step_spread_s=(min(torch_steps), max(torch_steps)),
            )
        )
    return rows


def print_table(rows: list[Row]) -> None:
    print(
        f"p={STAGES}, forward {FORWARD_MS} ms, backward {BACKWARD_MS} ms; medians (min..max);"
        f" load {os.getloadavg()[0]:.1f}"
    )
    print("schedule   m  bubble: theory  measured                 step s: predicted  ours                  torch")
    for row in rows:
        low, high = row.bubble_spread
        ours = f"{row.step_s:.3f} ({row.step_spread_s[0]:.3f}..{row.step_spread_s[1]:.3f})"
        theirs = f"{row.torch_step_s:.3f} ({row.torch_step_spread_s[0]:.3f}..{row.torch_step_spread_s[1]:.3f})"
        print(
            f"{row.schedule:8} {row.micro_batches:3}          {row.bubble_theory:.4f}"
            f"  {row.bubble_measured:.4f} ({low:.4f}..{high:.4f})"
            f"             {row.step_predicted_s:.3f}  {ours}  {theirs}  {'holds' if row.holds else 'OUT OF BOUND'}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("bench-bubble.json"))
    options = parser.parse_args()
    ranks = run_processes(measure, Path(__file__).resolve(), options.rounds, world=STAGES, timeout_s=600)
    for result in ranks:
        if isinstance(result, BaseException):
            raise result
    rows = report(ranks)
    print_table(rows)
    figures = {
        "load": os.getloadavg(),
        "rounds": options.rounds,
        "rows": [asdict(row) | {"holds": row.holds} for row in rows],
    }
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
