"""Measures what observing costs: processor time of steps with spans, metrics and output files on, over steps without.

    python tests/bench/trainer/bench_overhead.py [--rounds 120] [--output bench-overhead.json]

Two stages over gloo, real compute at the example's sizes. Each round plays one step observed and
one not, in an order that alternates, on the same layers and links; what is compared is the
processor time of both processes, which others on the machine disturb less than the clock. Beside
it, the calls that observe are timed by themselves: what the last step was recorded as is recorded
again, over and over. Ends with 1 if those take 0.5 % of a step's processor time or more, or the
rounds' median says so by more than twice its standard error.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import median, quantiles
from time import process_time

from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness import CPU, Player, Sample, launch, load, parser, take_turns, write
from pipelinejob.base.timeline import SpanKind, StageTimeline
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.spec.job import Data, GptModel, Model, ScheduleSpec
from pipelinejob_trainer.communication.process_groups import connect, process_groups
from pipelinejob_trainer.data.dataset import open_dataset
from pipelinejob_trainer.process.config import Address, Config
from pipelinejob_trainer.process.output import Output
from pipelinejob_trainer.process.stage_status import StageStatus, StepOutcome, tokens_per_step
from pipelinejob_trainer.runtime.rank import build_rank
from pipelinejob_trainer.runtime.recorder import IDLE, Recorder, State
from pipelinejob_trainer.runtime.reduction import sums_over_groups
from support.training import gangs

STAGES = 2
BOUND = 0.005
REPETITIONS = 500  # of one step's observing
PLAN = gangs.plan(
    5,
    5,
    model=Model(gpt=GptModel(num_layers=8, hidden_size=128, num_heads=4)),
    data=Data(corpus="python-stdlib", sequence_length=128),
    schedule=ScheduleSpec(micro_batches=8, micro_batch_size=4),
)


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


class Observer:
    """What watches a rank beside its recorder, as the training loop has it."""

    def __init__(self, rank: int, folder: Path) -> None:
        self._status = StageStatus(PLAN, stage=rank, replica=0, attempt=0)
        self._output = Output(_config(rank, folder), is_spokesman=rank == STAGES - 1, num_steps=10**9)
        self._looked = 0

    def look(self, step: int, timeline: StageTimeline | None) -> None:
        assert timeline is not None, "on a processor a step's timeline is known at its end"
        outcome = StepOutcome(
            step=step, loss=5.0, gradient_norm=1.0, learning_rate=1e-3, step_s=1.0, tokens_per_s=tokens_per_step(PLAN)
        )
        self._status.add_step(outcome)
        self._status.set_memory(peak_bytes=1, parameter_bytes=1, optimizer_bytes=1)
        self._looked += 1
        self._status.set_bytes("send", self._looked)
        self._status.set_bytes("recv", self._looked)
        self._output.add_step(outcome)
        self._status.add_timeline(timeline)
        self._output.add_timeline(timeline)
        if step % 10 == 0:  # a step takes less than a second, and Prometheus asks every 15 to 60
            self._status.metrics()


def measure(rank: int, folder: Path, rounds: int) -> tuple[dict[str, list[Sample]], float]:
    """One process: give the steps of both kinds, and the processor seconds of observing one by itself."""
    sys.stdout = (folder / f"stdout-{rank}").open("w")  # where the trainer's lines go
    made = build_rank(PLAN, index=rank, replica=0, device=CPU)
    links = connect(
        process_groups(pipeline=STAGES, data=1),
        routes=made.layout.schedule.routes,
        rows=PLAN.schedule.micro_batch_sizes,
        data=1,
        device=CPU,
    )
    batches = open_dataset(PLAN.data, schedule=PLAN.schedule, replicas=1, seed=0, model=PLAN.model)
    recorder, observer = Recorder(replica=0, stage=rank, device=CPU), Observer(rank, folder)
    timelines: list[StageTimeline] = []

    def player(recorder: Recorder, look: Callable[[int, StageTimeline | None], object]) -> Player:
        runtime = made.runtime(links=links, sum_over=sums_over_groups(()), recorder=recorder, batches=batches)

        def step(number: int) -> None:
            recorder.restart()
            float(runtime.run_step(number).loss_sum)
            with recorder.span(SpanKind.IDLE, cause=WaitCause.BARRIER):
                distributed.barrier()
            look(number, recorder.finish_step())

        return Player(step=step)

    def look(number: int, timeline: StageTimeline | None) -> None:
        observer.look(number, timeline)
        timelines[:] = [timeline] if timeline else []

    blind = player(Blind(replica=0, stage=rank, device=CPU), lambda _, __: None)
    samples = take_turns({"observed": player(recorder, look), "blind": blind}, rounds)
    return samples, observing_s(recorder, observer, timelines[0])


def observing_s(recorder: Recorder, observer: Observer, timeline: StageTimeline) -> float:
    """Return the processor seconds of observing one step like this one."""
    states = [State(span.kind, span.micro_batch, span.cause, span.chunk) for span in timeline.spans]
    start_s = process_time()
    for step in range(REPETITIONS):
        recorder.begin_step(step)
        for state in states:
            recorder.switch(state)
        recorder.switch(IDLE)
        observer.look(step, recorder.finish_step())
    return (process_time() - start_s) / REPETITIONS


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What observing costs, as parts of a step's processor time."""

    step_s: float  # processor seconds of both ranks, nobody looking
    alone: float
    in_rounds: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.in_rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = quantiles(self.in_rounds, n=4)
        return low, high

    @property
    def standard_error(self) -> float:
        """Return the median's, from the quartiles: of a normal distribution, 1.253 * deviation / sqrt(n)."""
        low, high = self.quartiles
        return 1.253 * (high - low) / 1.349 / sqrt(len(self.in_rounds))

    @property
    def holds(self) -> bool:
        return self.alone < BOUND and self.median - 2 * self.standard_error < BOUND


def cost_of(ranks: Sequence[tuple[dict[str, list[Sample]], float]]) -> Cost:
    """Lay both ranks together."""
    observed, blind = (
        [sum(pair) for pair in zip(*([s.processor_s for s in samples[who]] for samples, _ in ranks), strict=True)]
        for who in ("observed", "blind")
    )
    return Cost(
        step_s=median(blind),
        alone=sum(alone for _, alone in ranks) / median(blind),
        in_rounds=[one / other - 1 for one, other in zip(observed, blind, strict=True)],
    )


def _config(rank: int, folder: Path) -> Config:
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
    given = parser(__doc__, rounds=120, output="bench-overhead.json").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cost = cost_of(launch(measure, Path(folder), given.rounds, world=STAGES))
    low, high = cost.quartiles
    print(
        f"{given.rounds} rounds, a step takes {cost.step_s:.3f} s of processors; load {load():.1f}\n"
        f"observing by itself {cost.alone:.3%} of that; in rounds {cost.median:.2%} ± {cost.standard_error:.2%}"
        f" ({low:.2%}..{high:.2%})  {'holds' if cost.holds else 'OUT OF BOUND'}"
    )
    write(
        given.output,
        {
            "rounds": given.rounds,
            "step_processor_s": cost.step_s,
            "alone": cost.alone,
            "in_rounds": cost.median,
            "standard_error": cost.standard_error,
            "quartiles": cost.quartiles,
            "bound": BOUND,
            "holds": cost.holds,
        },
    )
    return 0 if cost.holds else 1


if __name__ == "__main__":
    sys.exit(main())
