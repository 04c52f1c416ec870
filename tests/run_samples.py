"""A finished run as data: its plan, its steps and its timelines, made up but consistent with each other."""

import math
import random

from pipelinejob.plan import CostSource, Plan, Prediction, StagePlan
from pipelinejob.progress import StepRecord
from pipelinejob.schedule import build
from pipelinejob.simulate import Link, simulate
from pipelinejob.spec import Checkpoint, Data, Device, GptModel, Model, Parallelism, Schedule, Training
from pipelinejob.status import PipelineJobStatus, State
from pipelinejob.timeline import Span, SpanKind, StageTimeline, Timeline

NUM_STAGES = 4
MICRO_BATCHES = 8


def plan(steps: int = 300) -> Plan:
    """Give a plan of four stages of a small GPT."""
    seconds = predicted()
    bounds = (0, 3, 5, 7, 10)
    stages = tuple(
        StagePlan(
            stage=stage,
            first_layer=bounds[stage],
            end_layer=bounds[stage + 1],
            forward_s=0.004,
            backward_s=0.008,
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
        schedule=Schedule(name="1F1B", micro_batches=MICRO_BATCHES, micro_batch_size=4),
        training=Training(steps=steps, learning_rate=3e-3),
        checkpoint=Checkpoint(),
        device=Device.CPU,
        stages=stages,
        prediction=Prediction(
            step_s=step_s, tokens_per_s=4096 / step_s, bubble_ratio=3 / 11, source=CostSource.PROFILED
        ),
    )


def predicted() -> Timeline:
    """Give the planned step."""
    return _simulated(0.004, 0.008, 0.0).timeline


def measured(steps: int = 3) -> Timeline:
    """Give the last steps as if measured: a little slower, each a little different, with an optimiser and its wait."""
    stages: list[StageTimeline] = []
    for step in range(steps):
        for each in _simulated(0.0042 + 0.0001 * step, 0.0085, 0.0002).timeline.stages:
            end = each.spans[-1].end_s
            tail = (
                Span(kind=SpanKind.IDLE, start_s=end, end_s=end + 0.0006),
                Span(kind=SpanKind.OPTIMIZER, start_s=end + 0.0006, end_s=end + 0.0016),
            )
            stages.append(each.model_copy(update={"step": 298 + step, "spans": (*each.spans, *tail)}))
    return Timeline(source="measured", stages=tuple(stages))


def steps(number: int = 300) -> tuple[StepRecord, ...]:
    """Give a loss that falls from 5.5, with noise, and one restart on the way."""
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
    """Give the status of a job that succeeded."""
    return PipelineJobStatus(state=State.SUCCEEDED, attempt=2, restarts=1, step=300, steps=300)


def _simulated(forward_s: float, backward_s: float, latency_s: float):
    schedule = build("1F1B", NUM_STAGES, MICRO_BATCHES)
    return simulate(
        schedule,
        forward_s=[forward_s] * NUM_STAGES,
        backward_s=[backward_s] * NUM_STAGES,
        links=[Link(latency_s=latency_s)] * (NUM_STAGES - 1),
    )
