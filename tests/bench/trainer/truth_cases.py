"""The random configurations that predictions are held against: real GPTs, and layers that wait."""

import random
from itertools import pairwise

from pipelinejob.planning.planner import make_plan
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import (
    Checkpoint,
    Corpus,
    Data,
    Device,
    GptModel,
    Model,
    Parallelism,
    Partition,
    PipelineJobSpec,
    ScheduleSpec,
    Training,
)

REAL_RANKS = 2
SETTLING_STEPS, REAL_STEPS, VIRTUAL_STEPS = 2, 6, 3
COUNTED_STEP_S = (0.1, 0.6)  # by operations over a core's nominal speed
SHARE_MS = 12  # of a virtual rank, for each pass of a micro-batch
ONE_CHUNK = (ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1, ScheduleName.ZB_H2)
TWO_CHUNKS = (ScheduleName.INTERLEAVED, ScheduleName.ZB_V, ScheduleName.V_HALF, ScheduleName.HANAYO)
FEW, FEW_MS = 3, 4
PASSES = ("forward_ms", "input_ms", "weight_ms")


def drawn_cut(draw: random.Random, num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Draw a way to cut layers into stages, every stage having one at least."""
    borders = sorted(draw.sample(range(1, num_layers), num_stages - 1))
    return tuple(end - first for first, end in pairwise((0, *borders, num_layers)))


def drawn_schedule(draw: random.Random, num_ranks: int, *, most_rounds: int) -> ScheduleSpec:
    """Draw a schedule and its micro-batches, a multiple of the ranks."""
    name = draw.choice((*ONE_CHUNK, *TWO_CHUNKS))
    return ScheduleSpec(
        name=name,
        micro_batches=num_ranks * draw.randint(1, most_rounds),
        micro_batch_size=draw.choice((1, 2, 3, 4)),
        virtual_stages=2 if name in TWO_CHUNKS else None,
        recompute=draw.random() < 0.2,
    )


def real_job(seed: int) -> PipelineJobSpec:
    """Draw a GPT, its cut, a schedule and micro-batches, for two ranks; again if a step is too short or too long."""
    draw = random.Random(seed)
    shortest_s, longest_s = COUNTED_STEP_S
    while True:
        spec = _any_real_job(draw)
        if shortest_s <= make_plan(namespace="bench", name="drawn", spec=spec).prediction.step_s <= longest_s:
            return spec


def _any_real_job(draw: random.Random) -> PipelineJobSpec:
    hidden = draw.choice((128, 192, 256, 384))
    gpt = GptModel(
        num_layers=draw.randint(2, 8),
        hidden_size=hidden,
        num_heads=hidden // 64,
        vocabulary_size=draw.choice((256, 256, 1024, 4096)),
        dropout=draw.choice((0.0, 0.0, 0.1)),
    )
    schedule = drawn_schedule(draw, REAL_RANKS, most_rounds=6)
    return _job(
        Model(gpt=gpt),
        ranks=REAL_RANKS,
        schedule=schedule,
        cut=drawn_cut(draw, gpt.num_layers + 2, REAL_RANKS * (schedule.virtual_stages or 1)),
        sequence_length=draw.choice((64, 128, 256)),
        steps=SETTLING_STEPS + REAL_STEPS + 1,
    )


def virtual_job(seed: int, ranks: int) -> PipelineJobSpec:
    """Draw layers that wait, within a factor of three of each other, their cut, a schedule and micro-batches."""
    draw = random.Random(1000 * ranks + seed)
    schedule = drawn_schedule(draw, ranks, most_rounds=2).model_copy(update={"micro_batch_size": 1, "recompute": False})
    stages = ranks * (schedule.virtual_stages or 1)
    count = stages * draw.randint(1, 3)
    base_ms = SHARE_MS * ranks / count
    arguments = {
        name: ",".join(f"{base_ms * 3 ** draw.uniform(-0.5, 0.5):.3f}" for _ in range(count)) for name in PASSES
    }
    # The embedding, which takes no time, is a layer of the first stage.
    first, *others = drawn_cut(draw, count, stages)
    return _job(
        Model(
            entrypoint="pipelinejob_trainer.models.virtual:layers",
            num_layers=count + 1,
            arguments=arguments | {"layers": str(count)},
        ),
        ranks=ranks,
        schedule=schedule,
        cut=(first + 1, *others),
        sequence_length=16,
        steps=SETTLING_STEPS + VIRTUAL_STEPS + 1,
    )


def few_layers(*, is_split: bool) -> PipelineJobSpec:
    """Return a job of a few equal layers that wait, whose profile tells what such layers take beside."""
    return _job(
        Model(
            entrypoint="pipelinejob_trainer.models.virtual:layers",
            num_layers=FEW + 1,
            arguments={name: str(FEW_MS) for name in PASSES} | {"layers": str(FEW)},
        ),
        ranks=2,
        schedule=ScheduleSpec(
            name=ScheduleName.ZB_H1 if is_split else ScheduleName.ONE_F_ONE_B, micro_batches=8, micro_batch_size=1
        ),
        cut=(2, FEW - 1),
        sequence_length=16,
        steps=1,
    )


def _job(
    model: Model, *, ranks: int, schedule: ScheduleSpec, cut: tuple[int, ...], sequence_length: int, steps: int
) -> PipelineJobSpec:
    return PipelineJobSpec(
        model=model,
        data=Data(corpus=Corpus.PYTHON_STDLIB, sequence_length=sequence_length),
        parallelism=Parallelism(pipeline=ranks),
        schedule=schedule,
        partition=Partition(layers=cut),
        training=Training(steps=steps),
        checkpoint=Checkpoint(interval_steps=0),
        device=Device.CPU,
    )
