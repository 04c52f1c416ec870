"""A finished run as data: its plan, its steps and its timelines, made up but consistent with each other."""

import math
import random
from functools import cache

from pipelinejob.base.timeline import Span, SpanKind, StageTimeline, Timeline
from pipelinejob.contract.plan import CostSource, Plan, Prediction, StagePlan
from pipelinejob.contract.progress import StepRecord
from pipelinejob.scheduler.catalogue import build
from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.schedules.costs import Link, equal_shares
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.simulation.result import Simulation
from pipelinejob.simulation.simulate import simulate
from pipelinejob.spec.job import Checkpoint, Data, Device, GptModel, Model, Parallelism, ScheduleSpec, Training
from pipelinejob.spec.reported.conditions import State
from pipelinejob.spec.status import PipelineJobStatus

NUM_STAGES = 4
MICRO_BATCHES = 8


def plan(steps: int = 300) -> Plan:
    """Return a plan of four stages of a small GPT."""
    seconds = predicted()
    cuts = ((0, 3), (3, 5), (5, 7), (7, 10))
    stages = tuple(
        StagePlan(
            stage=stage,
            chunks=(cuts[stage],),
            forward_s=0.004,
            backward_input_s=0.004,
            backward_weight_s=0.004,
            optimizer_s=0.001,
            output_bytes=0 if stage == NUM_STAGES - 1 else 65536,
            parameter_bytes=1_600_000,
            memory_bytes=40 * 2**20,
            bubble_ratio=3 / 11,
        )
        for stage in range(NUM_STAGES)
    )
    step_s = max(stage.spans[-1].end_s for stage in seconds.stages) + 0.002
    return Plan(
        namespace="default",
        name="stdlib-gpt",
        model=Model(gpt=GptModel(num_layers=8, hidden_size=128, num_heads=4)),
        data=Data(corpus="python-stdlib"),
        parallelism=Parallelism(pipeline=NUM_STAGES),
        schedule=ScheduleSpec(name="1F1B", micro_batches=MICRO_BATCHES, micro_batch_size=4),
        training=Training(steps=steps, learning_rate=3e-3),
        checkpoint=Checkpoint(),
        device=Device.CPU,
        cuts=cuts,
        stages=stages,
        prediction=Prediction(
            step_s=step_s, tokens_per_s=4096 / step_s, bubble_ratio=3 / 11, source=CostSource.PROFILED
        ),
    )


@cache
def schedule(name: str = "1F1B") -> Schedule:
    """Return the schedule that is played."""
    return build(ScheduleName(name), Setting(num_ranks=NUM_STAGES, num_micro_batches=MICRO_BATCHES))


def predicted(name: str = "1F1B") -> Timeline:
    """Return the planned step."""
    return _simulated(name, 0.004, 0.008, 0.0).timeline


def measured(steps: int = 3, name: str = "1F1B") -> Timeline:
    """The last steps as if measured: a little slower, each a little different, with an optimiser and its wait."""
    stages: list[StageTimeline] = []
    for step in range(steps):
        for each in _simulated(name, 0.0042 + 0.0001 * step, 0.0085, 0.0002).timeline.stages:
            end = each.spans[-1].end_s
            tail = (
                Span(kind=SpanKind.IDLE, start_s=end, end_s=end + 0.0006, cause=WaitCause.BARRIER),
                Span(kind=SpanKind.OPTIMIZER, start_s=end + 0.0006, end_s=end + 0.0016),
            )
            stages.append(each.model_copy(update={"step": 298 + step, "spans": (*each.spans, *tail)}))
    return Timeline(source="measured", stages=tuple(stages))


def steps(number: int = 300) -> tuple[StepRecord, ...]:
    """Return a loss that falls from 5.5, with noise, and one restart on the way."""
    noise = random.Random(0)
    return tuple(
        StepRecord(
            step=step,
            loss=2.0 + 3.5 * math.exp(-step / 60) + noise.gauss(0, 0.05),
            gradient_norm=1.0,
            learning_rate=3e-3,
            step_s=0.15 + noise.random() * 0.01,
            tokens_per_s=27000,
            time=1.7e9 + step * 0.15,
            attempt=1 if step < 180 else 2,
        )
        for step in range(1, number + 1)
    )


def status() -> PipelineJobStatus:
    """Return the status of a job that succeeded."""
    return PipelineJobStatus(state=State.SUCCEEDED, attempt=2, restarts=1, step=300, steps=300)


def _simulated(name: str, forward_s: float, backward_s: float, latency_s: float) -> Simulation:
    costs = equal_shares(
        NUM_STAGES,
        forward_s=forward_s,
        input_s=backward_s / 2,
        weight_s=backward_s / 2,
        link=Link(latency_s=latency_s),
    )
    played = schedule(name)
    return simulate(played, costs(played.routes))
