"""Pipelines for the trainer's tests: threads of this process, processes over gloo, and the unsplit model beside."""

import pickle
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn import functional

from pipelinejob.base.timeline import SpanKind, StageTimeline
from pipelinejob.scheduler import catalogue
from pipelinejob.schedules.actions import Schedule
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob.spec.job import Data, GptModel, Lora, Model, Precision
from pipelinejob_trainer.base.ports import free_port
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.communication.process_groups import connect, process_groups
from pipelinejob_trainer.data.dataset import Dataset
from pipelinejob_trainer.data.text import training_text
from pipelinejob_trainer.data.windows import ByteWindows
from pipelinejob_trainer.models.first_layer import extra_inputs
from pipelinejob_trainer.models.identity import layer_of
from pipelinejob_trainer.models.losses.auxiliary_loss import Gathering
from pipelinejob_trainer.models.part import Part as ModelPart
from pipelinejob_trainer.models.part import build_part, num_layers
from pipelinejob_trainer.runtime.asynchronous import Update
from pipelinejob_trainer.runtime.recorder import Recorder
from pipelinejob_trainer.runtime.reduction import Reducer, Share, SumOver, buckets, share_of, sums_over_groups
from pipelinejob_trainer.runtime.runtime import Runtime
from pipelinejob_trainer.stage.chunk import Chunk, make_chunk
from pipelinejob_trainer.stage.randomness import reseeder, seed_of_pass
from support.local.forkserver import forking_context
from support.local.processes import HANG_S
from support.training import inprocess
from support.training.queue_link import QueueLink

CPU = torch.device("cpu")
RESEED = reseeder(CPU)
TINY_GPT = Model(gpt=GptModel(num_layers=4, hidden_size=16, num_heads=2))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the trainer's tests train. `stages` are ranks of one pipeline; `cuts` the layers of each stage of a route.

    `schedule` is one by name, or any other. `rows` are the sequences of each micro-batch.
    """

    text: Path
    model: Model = TINY_GPT
    stages: int = 4
    replicas: int = 1
    schedule: ScheduleName | Schedule = ScheduleName.ONE_F_ONE_B
    chunks: int | None = None
    micro_batches: int = 6
    micro_batch_size: int = 2
    unequal_rows: tuple[int, ...] | None = None
    cuts: tuple[tuple[int, int], ...] | None = None
    sequence_length: int = 16
    precision: Precision = Precision.FP32
    recompute: int = False  # True: all, a number: so many first layers of each chunk
    update_interval: int | None = None
    vertical_sync: bool = False
    seed: int = 7
    steps: int = 2
    lora: Lora | None = None
    compiles: bool = False

    @property
    def data(self) -> Data:
        return Data(paths=(str(self.text),), sequence_length=self.sequence_length)

    @property
    def rows(self) -> tuple[int, ...]:
        return self.unequal_rows or (self.micro_batch_size,) * self.micro_batches

    @cached_property
    def built(self) -> Schedule:
        if isinstance(self.schedule, Schedule):
            return self.schedule
        setting = Setting(
            num_ranks=self.stages,
            num_micro_batches=self.micro_batches,
            num_chunks=self.chunks,
            update_interval=self.update_interval,
            vertical_sync=self.vertical_sync,
        )
        return catalogue.build(self.schedule, setting)

    def dataset(self) -> Dataset:
        return Dataset(
            samples=ByteWindows(
                text=training_text(self.data, None), sequence_length=self.sequence_length, seed=self.seed
            ),
            rows=self.rows,
            replicas=self.replicas,
        )

    def cut(self) -> tuple[tuple[int, int], ...]:
        """Return the layers of each stage of a route: as evenly as it goes, unless said otherwise."""
        layers, stages = num_layers(self.model), self.built.num_stages
        assert layers >= stages, f"{layers} layers are too few for {stages} stages"
        return self.cuts or tuple((s * layers // stages, (s + 1) * layers // stages) for s in range(stages))

    def share(self, layers: tuple[int, ...]) -> Share:
        return share_of(layers, cuts=self.cut(), routes=self.built.routes, replicas=range(self.replicas))


@dataclass(kw_only=True)
class Outcome:
    """What came of each step; gradients add up over the steps, as no optimiser clears them."""

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    timelines: list[StageTimeline] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A rank, put together."""

    part: ModelPart
    chunks: tuple[Chunk, ...]
    recorder: Recorder
    runtime: Runtime


def make_rank(
    job: Job, *, rank: int, links: Links, sum_over: SumOver | None = None, update: Update | None = None
) -> Rank:
    """Put a rank together; `rank` counts over all replicas."""
    replica, within = divmod(rank, job.stages)
    schedule, cut = job.built, job.cut()
    held = schedule.held_by(within)
    stretches = [cut[each.stage] for each in held]
    part = build_part(job.model, job.data, stretches=stretches, seed=job.seed, lora=job.lora)
    chunks = tuple(
        make_chunk(
            layers,
            is_first=each.stage == 0,
            is_last=each.stage == schedule.num_stages - 1,
            precision=job.precision,
            device=CPU,
            recomputed=len(layers) if job.recompute is True else min(job.recompute, len(layers)),
            is_split=schedule.is_split,
            compiles=job.compiles,
        )
        for each, layers in zip(held, part.chunks, strict=True)
    )
    recorder = Recorder(replica=replica, stage=within, device=CPU)
    runtime = Runtime(
        schedule=schedule,
        rank=within,
        chunks=chunks,
        links=links,
        recorder=recorder,
        batches=job.dataset(),
        rows=job.rows,
        replica=replica,
        num_replicas=job.replicas,
        seed=job.seed,
        reducer=None if sum_over is None else make_reducer(job, part, sum_over),
        update=update,
    )
    return Rank(part=part, chunks=chunks, recorder=recorder, runtime=runtime)


def make_reducer(job: Job, part: ModelPart, sum_over: SumOver) -> Reducer:
    parameters = part.named_parameters()
    shares = {name: job.share(part.shared.get(name, (layer_of(name),))) for name in parameters}
    return Reducer(buckets(parameters, shares), sum_over)


def run_steps(job: Job, rank: Rank, *, barrier: Callable[[], object], evaluate_between: bool = False) -> Outcome:
    """Run one rank's steps, each to its barrier."""
    outcome = Outcome()
    for step in range(1, job.steps + 1):
        if evaluate_between:
            rank.runtime.evaluate(step + 100)
        outcome.losses.append(float(rank.runtime.run_step(step).loss_sum))
        with rank.recorder.span(SpanKind.IDLE, cause=WaitCause.BARRIER):
            barrier()
        timeline = rank.recorder.finish_step()
        assert timeline is not None
        outcome.timelines.append(timeline)
        keep_gradients(rank.part, outcome)
    return outcome


def keep_gradients(part: ModelPart, outcome: Outcome) -> None:
    """Add a step's gradients to the outcome, and clear them."""
    for name, parameter in part.named_parameters().items():
        if parameter.grad is not None:
            before = outcome.gradients.get(name)
            outcome.gradients[name] = parameter.grad if before is None else before + parameter.grad
            parameter.grad = None


def run_unsplit(job: Job, part: ModelPart | None = None) -> Outcome:
    """Train the whole model the plain way: no stage, no runtime, one micro-batch after the other."""
    part = part or build_part(job.model, job.data, stretches=[(0, num_layers(job.model))], seed=job.seed, lora=job.lora)
    outcome = Outcome()
    for step in range(1, job.steps + 1):
        losses = []
        for sample in range(job.replicas * job.micro_batches):
            loss = unsplit_loss(job, part, step, sample)
            loss.backward()
            losses.append(loss.detach())
        outcome.losses.append(float(torch.stack(losses).sum()))
        keep_gradients(part, outcome)
    return outcome


def unsplit_loss(job: Job, part: ModelPart, step: int, sample: int) -> torch.Tensor:
    """Return a micro-batch's part of the global batch's loss; `sample` counts micro-batches over all replicas."""
    replica, k = divmod(sample, job.micro_batches)
    tokens, targets, positions = job.dataset().batch(step, replica, k)
    stream = tokens.clone()  # a layer's to change; targets lie beside
    weight = job.rows[k] / (job.replicas * sum(job.rows))
    autocast = torch.autocast("cpu", torch.bfloat16) if job.precision is Precision.BF16 else nullcontext()
    with autocast, Gathering() as terms:
        for layer in part.layers:
            RESEED(seed_of_pass(job.seed, step, sample), layer.index)
            stream = layer.module(stream, **extra_inputs(layer.index, layer.module, positions))
    loss = functional.cross_entropy(stream.float().flatten(0, -2), targets.flatten())
    return sum(terms, start=loss) * weight


@torch.no_grad()
def evaluate_unsplit(job: Job) -> list[float]:
    """Return each step's loss in evaluation."""
    part = build_part(job.model, job.data, stretches=[(0, num_layers(job.model))], seed=job.seed)
    for layer in part.layers:
        layer.module.eval()
    steps = range(1, job.steps + 1)
    return [
        float(torch.stack([unsplit_loss(job, part, step, k) for k in range(job.micro_batches)]).sum()) for step in steps
    ]


class Threads:
    """A pipeline whose ranks are threads of this process, one at work at a time, or all of them `at_once`."""

    def __init__(self, job: Job, *, at_once: bool = False) -> None:
        self._baton = inprocess.Baton(is_needed=not at_once)
        self.sums = inprocess.Sums(self._baton)
        self._links = [each for _ in range(job.replicas) for each in inprocess.links(job.built, self._baton)]
        # Made one after the other: torch's random state, from which initial weights come, is the
        # whole process's.
        self.ranks = [
            make_rank(job, rank=rank, links=each, sum_over=self.sums.of(rank), update=lambda _: None)
            for rank, each in enumerate(self._links)
        ]
        self._barrier = threading.Barrier(len(self.ranks))

    def meet(self) -> None:
        """Wait for all ranks."""
        with self._baton.let_go():
            self._barrier.wait(timeout=inprocess.TIMEOUT_S)

    def run(self, work: Callable[[Rank], Any]) -> list[Any]:
        """Let all ranks work; give what they return, raise what the first of them raises."""
        return inprocess.run_ranks(
            lambda rank: work(self.ranks[rank]), len(self.ranks), self._baton, on_error=self._leave
        )

    def _leave(self, rank: int) -> None:
        self._barrier.abort()
        for link in self._links[rank].outboxes.values():
            assert isinstance(link, QueueLink)
            link.close()


def run_threads(job: Job, *, at_once: bool = False, evaluate_between: bool = False) -> Outcome:
    """Train in threads."""
    threads = Threads(job, at_once=at_once)
    outcomes = threads.run(lambda rank: run_steps(job, rank, barrier=threads.meet, evaluate_between=evaluate_between))
    assert all(chunk.num_in_flight == 0 for rank in threads.ranks for chunk in rank.chunks)
    return merged(outcomes)


def evaluate_threads(job: Job) -> tuple[list[float], dict[str, object]]:
    """Evaluate in threads; give each step's loss, and what is left behind."""
    threads = Threads(job)
    steps = range(1, job.steps + 1)
    losses = threads.run(lambda rank: [float(rank.runtime.evaluate(step).loss_sum) for step in steps])
    chunks = [chunk for rank in threads.ranks for chunk in rank.chunks]
    return [sum(each) for each in zip(*losses, strict=True)], {
        "in flight": sum(chunk.num_in_flight for chunk in chunks),
        "gradients": sum(each.grad is not None for chunk in chunks for _, each in chunk.named_parameters()),
        "training": all(chunk.module.training for chunk in chunks),
    }


def merged(outcomes: list[Outcome]) -> Outcome:
    """Lay the ranks' outcomes together: losses add up; what several ranks hold must be equal on all of them."""
    whole = Outcome(losses=[sum(losses) for losses in zip(*(outcome.losses for outcome in outcomes), strict=True)])
    for outcome in outcomes:
        for name, gradient in outcome.gradients.items():
            assert torch.equal(whole.gradients.setdefault(name, gradient), gradient), f"{name} differs between ranks"
        whole.timelines += outcome.timelines
    return whole


def run_processes(
    function: Callable[..., Any], *arguments: Any, world: int, expected: int | None = None, timeout_s: float = HANG_S
) -> list[Any]:
    """Call `function(rank, *arguments)` in `world` processes joined by gloo; give what they returned or raised.

    `expected` is how many live long enough to say so; all of them if None.
    """
    context = forking_context()
    port = free_port()
    results: Any = context.Queue()
    processes = [
        context.Process(target=_enter, args=(results, function, rank, arguments), kwargs={"world": world, "port": port})
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        collected = dict(_result(results, processes, timeout_s) for _ in range(expected or world))
    finally:
        for process in processes:
            process.join(timeout=60)
            process.kill()
    return [collected[rank] for rank in sorted(collected)]


def _result(results: Any, processes: Sequence[Any], timeout_s: float) -> Any:
    """Wait for what a process returned or raised; no longer than one of them lives."""
    deadline = time.monotonic() + timeout_s
    while True:
        are_gone = not any(process.is_alive() for process in processes)
        try:
            return pickle.loads(results.get(timeout=1))
        except queue.Empty:
            if are_gone or time.monotonic() > deadline:
                raise


def connect_all(job: Job) -> tuple[Links, SumOver]:
    """Connect this process with the job's other ranks over gloo."""
    groups = process_groups(pipeline=job.stages, data=job.replicas)
    links = connect(groups, routes=job.built.routes, rows=job.rows, data=job.replicas, device=CPU)
    layers = range(num_layers(job.model))
    shared = build_part(job.model, job.data, stretches=[(0, 1)], seed=job.seed).shared
    return links, sums_over_groups(job.share(each) for each in (*((layer,) for layer in layers), *shared.values()))


def gloo_rank(rank: int, job: Job) -> Outcome:
    """Run one rank over gloo."""
    torch.set_num_threads(1)
    links, sum_over = connect_all(job)
    return run_steps(job, make_rank(job, rank=rank, links=links, sum_over=sum_over), barrier=distributed.barrier)


def run_gloo(job: Job) -> Outcome:
    """Run the job as one process a rank."""
    outcomes = run_processes(gloo_rank, job, world=job.stages * job.replicas)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return merged(outcomes)


def _enter(
    results: Any, function: Callable[..., Any], rank: int, arguments: tuple[Any, ...], *, world: int, port: int
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        result = function(rank, *arguments)
    except Exception as error:  # noqa: BLE001 # handed to the test, whatever it is
        result = error
    # As bytes: torch would send its tensors as files of this process, which soon ends.
    results.put(pickle.dumps((rank, result)))
    distributed.destroy_process_group()
