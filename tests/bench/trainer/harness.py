"""What the benchmarks share: pipelines of virtual compute, those who play them, and rounds that take turns.

All players of a benchmark live in the same processes, one a rank, over gloo; a round lets each
play one step, in an order that alternates. A step lasts from one barrier to the next, whoever
plays it.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[2]))

from calibration import Excess
from pipelinejob.base.timeline import bubble_ratio
from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.schedules.costs import CostModel, shares
from pipelinejob.simulation.result import Simulation
from pipelinejob.simulation.simulate import simulate
from pipelinejob.spec.job import Model
from pipelinejob_trainer.communication.process_groups import Groups, connect
from pipelinejob_trainer.models.part import build_part
from pipelinejob_trainer.runtime.recorder import IDLE, State
from pipelinejob_trainer.runtime.reduction import sums_over_groups
from support.training.pipelines import CPU, Job, Rank, make_rank, run_processes
from support.training.torch_runtime import TorchRuntime

TEXT = Path(__file__).resolve()


class Sample(NamedTuple):
    """A step of one rank; the bubble is None where its player does not know it."""

    seconds: float
    processor_s: float  # of all threads of the process
    bubble: float | None = None


@dataclass(frozen=True, kw_only=True)
class Player:
    """Somebody who plays steps, on one rank; `bubble` is asked after the barrier that ends the step."""

    step: Callable[[int], object]
    bubble: Callable[[], float | None] = lambda: None


def virtual_job(
    schedule: Schedule,
    *,
    forward_ms: Sequence[float],
    input_ms: Sequence[float],
    weight_ms: Sequence[float],
    cuts: Sequence[int] | None = None,
    speed: float = 1.0,
) -> Job:
    """Make a job of virtual compute; the costs are of each layer.

    `cuts` are the layers of each stage of a route, one if None. `speed` is that of the rank whose
    job this is.
    """
    sizes = list(cuts or [1] * schedule.num_stages)
    assert sum(sizes) == len(forward_ms), f"stages of {sizes} layers for {len(forward_ms)} layers"
    arguments = {
        name: ",".join(map(str, costs))
        for name, costs in (("forward_ms", forward_ms), ("input_ms", input_ms), ("weight_ms", weight_ms))
    }
    model = Model(
        entrypoint="pipelinejob_trainer.models.virtual:layers",
        num_layers=len(forward_ms) + 1,
        arguments=arguments | {"layers": str(len(forward_ms)), "speed": str(speed)},
    )
    return Job(
        text=TEXT,
        model=model,
        stages=schedule.num_ranks,
        schedule=schedule,
        micro_batches=schedule.num_micro_batches,
        micro_batch_size=1,
        cuts=tuple(_stretches(sizes)),
    )


def even_job(schedule: Schedule, *, share_ms: float, excess: Excess | None = None) -> Job:
    """Make a job in which a rank's whole share takes `share_ms` forward, and each of its gradients as long.

    Each wait takes that long, or with `excess`, which is known not to be a runtime's, each pass.
    """
    pass_ms = share_ms * schedule.num_ranks / schedule.num_stages
    waits_ms = excess.waits_ms(pass_ms, schedule) if excess else [pass_ms] * 3
    forward_ms, input_ms, weight_ms = ([each] * schedule.num_stages for each in waits_ms)
    return virtual_job(schedule, forward_ms=forward_ms, input_ms=input_ms, weight_ms=weight_ms)


def _stretches(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Return each stage's layers; the embedding, which costs nothing, is layer 0."""
    end = 1
    for stage, size in enumerate(sizes):
        yield (0 if stage == 0 else end, end + size)
        end += size


def even_costs(num_ranks: int, *, share_ms: float) -> CostModel:
    seconds = [share_ms / 1000] * num_ranks
    return shares(forward_s=seconds, input_s=seconds, weight_s=seconds)


def ideal(schedule: Schedule, costs: CostModel) -> Simulation:
    """Simulate a step that costs nothing beside its compute."""
    return simulate(schedule, costs(schedule.routes))


def ours(job: Job, rank: int, groups: Groups) -> Player:
    """Return this project's runtime, spans and all."""
    links = connect(groups, routes=job.built.routes, rows=job.rows, data=1, device=CPU)
    sums = sums_over_groups(job.share((layer,)) for layer in range(job.cut()[-1][1]))
    made = make_rank(job, rank=rank, links=links, sum_over=sums, update=lambda _: _forget_gradients(made))

    def step(number: int) -> None:
        # A recorder goes on from step to step; here other players' steps lie between.
        made.recorder.restart()
        made.runtime.run_step(number)
        made.recorder.switch(_AT_THE_BARRIER)

    def bubble() -> float:
        made.recorder.switch(IDLE)
        timeline = made.recorder.finish_step()
        assert timeline is not None
        return bubble_ratio(timeline.spans)

    return Player(step=step, bubble=bubble)


_AT_THE_BARRIER = State(IDLE.kind, cause=WaitCause.BARRIER)


def _forget_gradients(rank: Rank) -> None:
    for parameter in rank.part.named_parameters().values():
        parameter.grad = None


def torchs_runtime(job: Job, rank: int) -> Player:
    """Return torch's runtime, playing the same list."""
    schedule, cut = job.built, job.cut()
    stretches = [cut[held.stage] for held in schedule.held_by(rank)]
    runtime = TorchRuntime(
        schedule=schedule,
        rank=rank,
        chunks=build_part(job.model, job.data, stretches=stretches, seed=job.seed).chunks,
        batches=job.dataset(),
        rows=job.rows,
        seed=job.seed,
        device=CPU,
    )
    return Player(step=runtime.run_step)


def take_turns(players: Mapping[str, Player], rounds: int) -> dict[str, list[Sample]]:
    """Let all play a step in each round, the order alternating; the first round only warms up."""
    samples: dict[str, list[Sample]] = {name: [] for name in players}
    for number in range(rounds + 1):
        for name in reversed(players) if number % 2 else players:
            sample = _timed(players[name], number + 1)
            if number:
                samples[name].append(sample)
    return samples


def _timed(player: Player, number: int) -> Sample:
    distributed.barrier()
    start_s, start_processor_s = perf_counter(), process_time()
    player.step(number)
    distributed.barrier()
    return Sample(perf_counter() - start_s, process_time() - start_processor_s, player.bubble())


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Steps of one player: as long as on the slowest rank; bubbles, and the processor's time, are means over ranks."""

    seconds: tuple[float, ...]
    processor_s: float  # the median step's
    bubbles: tuple[float, ...]

    @property
    def least_s(self) -> float:
        return min(self.seconds)

    @property
    def median_s(self) -> float:
        return median(self.seconds)

    def __str__(self) -> str:
        return f"{self.least_s:.3f} ({self.median_s:.3f})"


def laid_together(ranks: Sequence[Mapping[str, Sequence[Sample]]]) -> dict[str, Measured]:
    """Lay all ranks' samples together."""
    return {name: _measured([rank[name] for rank in ranks]) for name in ranks[0]}


def _measured(ranks: Sequence[Sequence[Sample]]) -> Measured:
    steps = list(zip(*ranks, strict=True))
    return Measured(
        seconds=tuple(max(sample.seconds for sample in step) for step in steps),
        processor_s=median(sum(sample.processor_s for sample in step) / len(step) for step in steps),
        bubbles=tuple(
            sum(sample.bubble for sample in step) / len(step)
            for step in steps
            if all(sample.bubble is not None for sample in step)
        ),
    )


def launch(function: Callable[..., Any], *arguments: Any, world: int) -> list[Any]:
    """Call `function(rank, *arguments)` in as many processes; give what they returned, or raise what they did."""
    results = run_processes(function, *arguments, world=world, timeout_s=3600)
    errors = [result for result in results if isinstance(result, Exception)]
    if errors:
        raise ExceptionGroup("ranks failed; those that only lost another rank say so", errors)
    return results


def parser(description: str | None, *, rounds: int, output: str) -> argparse.ArgumentParser:
    """Return the options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=rounds)
    options.add_argument("--output", type=Path, default=Path(output))
    return options


def load() -> float:
    return os.getloadavg()[0]


def write(output: Path, figures: Mapping[str, Any]) -> None:
    output.write_text(json.dumps({"load": os.getloadavg(), **figures}, indent=2) + "\n")
