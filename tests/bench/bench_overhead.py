"""Measures what observing costs: throughput with spans, metrics and output files on, over throughput with them off.

    python tests/bench/bench_overhead.py [--pairs 30] [--output bench-overhead.json]

Two stages over gloo, real compute at the example's sizes. In one run, each pair plays one step observed and one not,
the order alternating, on the same layers and links. Ends with 1 if the median of the pairs' ratios is below 0.99. The
same ratio of processor seconds stands beside it: it says what observing costs even where others use the machine.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelinejob.schedule import stage_actions

import gangs
from pipelinejob.spec import Data, GptModel, Model, Schedule
from pipelinejob.timeline import SpanKind, StageTimeline
from pipelinejob_trainer.account import Account, StepOutcome, tokens_per_step
from pipelinejob_trainer.config import Address, Config
from pipelinejob_trainer.data import open_dataset
from pipelinejob_trainer.models import build_layers
from pipelinejob_trainer.output import Output
from pipelinejob_trainer.parallel import connect, process_groups
from pipelinejob_trainer.recorder import Recorder, State
from pipelinejob_trainer.runtime import Runtime
from pipelinejob_trainer.stage import Stage
from pipelines import CPU, run_processes

STAGES = 2
BOUND = 0.99
PLAN = gangs.plan(
    5,
    5,
    model=Model(gpt=GptModel(num_layers=8, hidden_size=128, num_heads=4)),
    data=Data(corpus="python-stdlib", sequence_length=128),
    schedule=Schedule(micro_batches=8, micro_batch_size=4),
)


class Cost(NamedTuple):
    """What a step cost a process."""

    wall_s: float
    processor_s: float


class Blind(Recorder):
    """Records nothing."""

    def begin_step(self, number: int) -> None:
        pass

    def switch(self, state: State) -> None:
        pass

    @contextmanager
    def span(self, kind: SpanKind, *, micro_batch: int | None = None, cause: str | None = None) -> Iterator[None]:
        yield

    def finish_step(self) -> StageTimeline | None:
        return None


def measure(rank: int, folder: Path, pairs: int) -> list[tuple[Cost, Cost]]:
    """One process: what each pair's steps cost, observed and not; the first pair only warms up."""
    observed, blind = make_plays(rank, folder)
    seconds = []
    for pair in range(pairs + 1):
        if pair % 2:
            without = timed(blind, pair)
            with_observing = timed(observed, pair)
        else:
            with_observing = timed(observed, pair)
            without = timed(blind, pair)
        seconds.append((with_observing, without))
    return seconds[1:]


def timed(play: Callable[[int], None], pair: int) -> Cost:
    distributed.barrier()
    start_s, start_processor_s = time.perf_counter(), time.process_time()
    play(pair + 1)
    distributed.barrier()
    return Cost(time.perf_counter() - start_s, time.process_time() - start_processor_s)


def make_plays(rank: int, folder: Path) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Give what plays an observed step, and what plays one that nobody looks at, on one stage."""
    groups = process_groups(pipeline=STAGES, data=1)
    links = connect(groups, pipeline=STAGES, data=1, device=CPU)
    planned = PLAN.stages[rank]
    stage = Stage(
        build_layers(PLAN.model, PLAN.data, first=planned.first_layer, end=planned.end_layer, seed=0),
        is_first=rank == 0,
        is_last=rank == STAGES - 1,
        loss_weight=1 / PLAN.schedule.micro_batches,
        precision=PLAN.training.precision,
        device=CPU,
    )
    recorder, blind = (kind(replica=0, stage=rank, device=CPU) for kind in (Recorder, Blind))
    runtimes = [
        Runtime(
            actions=stage_actions(PLAN.schedule.name, rank, STAGES, PLAN.schedule.micro_batches),
            stage=stage,
            links=links,
            recorder=each,
            batches=open_dataset(PLAN.data, schedule=PLAN.schedule, replicas=1, seed=0, vocabulary_size=256),
            seed=0,
        )
        for each in (recorder, blind)
    ]
    account = Account(PLAN, stage=rank, replica=0, attempt=0)
    output = Output(config(rank, folder), is_spokesman=rank == STAGES - 1, num_steps=PLAN.training.steps)

    def play_observed(step: int) -> None:
        recorder.restart()
        loss = float(runtimes[0].run_step(step).loss_sum)
        with recorder.span(SpanKind.IDLE, cause="drain"):
            distributed.barrier()
        timeline = recorder.finish_step()
        assert timeline is not None
        outcome = StepOutcome(
            step=step, loss=loss, gradient_norm=1.0, learning_rate=1e-3, step_s=1.0, tokens_per_s=tokens_per_step(PLAN)
        )
        account.add_step(outcome)
        account.add_timeline(timeline)
        output.add_step(outcome)
        output.add_timeline(timeline)
        if step % 10 == 0:  # a step takes less than a second, and Prometheus asks every 15 to 60
            account.metrics()

    def play_blind(step: int) -> None:
        float(runtimes[1].run_step(step).loss_sum)
        distributed.barrier()

    return play_observed, play_blind


def config(rank: int, folder: Path) -> Config:
    return Config(
        plan=folder / "plan.json",
        namespace=PLAN.namespace,
        job=PLAN.name,
        stage=rank,
        replica=0,
        attempt=0,
        rendezvous=Address(host="127.0.0.1", port=1),
        metrics_port=0,
        checkpoints=folder,
        output=folder,
        termination_log=None,
        grace_s=30.0,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("bench-overhead.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ranks = run_processes(measure, Path(folder), options.pairs, world=STAGES, timeout_s=900)
    for result in ranks:
        if isinstance(result, BaseException):
            raise result
    # Both ranks end a step at the same barrier; rank 0's clock tells the time of both.
    ratios = [blind.wall_s / observed.wall_s for observed, blind in ranks[0]]
    processor_ratios = [
        sum(blind.processor_s for _, blind in pair) / sum(observed.processor_s for observed, _ in pair)
        for pair in zip(*ranks, strict=True)
    ]
    low, _, high = quantiles(ratios, n=4)
    figures = {
        "load": os.getloadavg(),
        "pairs": options.pairs,
        "throughput_ratio": median(ratios),
        "quartiles": [low, high],
        "processor_ratio": median(processor_ratios),
        "processor_quartiles": quantiles(processor_ratios, n=4)[::2],
        "step_s_observed": median(observed.wall_s for observed, _ in ranks[0]),
        "step_s_blind": median(blind.wall_s for _, blind in ranks[0]),
        "bound": BOUND,
    }
    print(json.dumps(figures, indent=2))
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if figures["throughput_ratio"] >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
