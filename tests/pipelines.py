"""Pipelines for the trainer's tests: threads of this process, processes over gloo, and the unsplit model beside."""

import multiprocessing
import pickle
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn import functional

from pipelinejob.schedule import stage_actions
from pipelinejob.spec import Data, GptModel, Model, Precision, Schedule, ScheduleName
from pipelinejob.timeline import SpanKind, StageTimeline
from pipelinejob_trainer.data import Dataset, open_dataset
from pipelinejob_trainer.link import Links, QueueLink
from pipelinejob_trainer.models import build_layers, num_layers
from pipelinejob_trainer.parallel import connect, process_groups, sum_gradients
from pipelinejob_trainer.recorder import Recorder
from pipelinejob_trainer.runtime import Runtime
from pipelinejob_trainer.stage import Stage

CPU = torch.device("cpu")
TINY_GPT = Model(gpt=GptModel(num_layers=4, hidden_size=16, num_heads=2))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the trainer's tests train."""

    text: Path
    model: Model = TINY_GPT
    stages: int = 4
    replicas: int = 1
    schedule: ScheduleName = ScheduleName.ONE_F_ONE_B
    micro_batches: int = 6
    micro_batch_size: int = 2
    sequence_length: int = 16
    precision: Precision = Precision.FP32
    seed: int = 7
    steps: int = 2

    @property
    def data(self) -> Data:
        return Data(paths=(str(self.text),), sequence_length=self.sequence_length)

    def dataset(self) -> Dataset:
        schedule = Schedule(
            name=self.schedule, micro_batches=self.micro_batches, micro_batch_size=self.micro_batch_size
        )
        return open_dataset(self.data, schedule=schedule, replicas=self.replicas, seed=self.seed)

    def layers_of(self, stage: int) -> tuple[int, int]:
        """Cut the list of layers as evenly as it goes."""
        layers = num_layers(self.model)
        return stage * layers // self.stages, (stage + 1) * layers // self.stages


@dataclass(kw_only=True)
class Outcome:
    """What came of each step; gradients add up over the steps, as no optimiser clears them."""

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    timelines: list[StageTimeline] = field(default_factory=list)


def make_runtime(job: Job, *, rank: int, links: Links) -> tuple[Stage, Recorder, Runtime]:
    """Put a rank together."""
    replica, stage_index = divmod(rank, job.stages)
    first, end = job.layers_of(stage_index)
    stage = Stage(
        build_layers(job.model, job.data, first=first, end=end, seed=job.seed),
        is_first=stage_index == 0,
        is_last=stage_index == job.stages - 1,
        loss_weight=1 / (job.micro_batches * job.replicas),
        precision=job.precision,
        device=CPU,
    )
    recorder = Recorder(replica=replica, stage=stage_index, device=CPU)
    runtime = Runtime(
        actions=stage_actions(job.schedule, stage_index, job.stages, job.micro_batches),
        stage=stage,
        links=links,
        recorder=recorder,
        batches=job.dataset(),
        replica=replica,
        seed=job.seed,
    )
    return stage, recorder, runtime


def run_steps(
    job: Job, stage: Stage, recorder: Recorder, runtime: Runtime, *, barrier: Callable[[], object]
) -> Outcome:
    """Run one rank's steps, each to its barrier."""
    outcome = Outcome()
    for step in range(1, job.steps + 1):
        outcome.losses.append(float(runtime.run_step(step).loss_sum))
        with recorder.span(SpanKind.IDLE, cause="drain"):
            barrier()
        timeline = recorder.finish_step()
        assert timeline is not None
        outcome.timelines.append(timeline)
    outcome.gradients = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
    return outcome


def run_unsplit(job: Job) -> Outcome:
    """Train the whole model the plain way: no stage, no runtime, one micro-batch after the other."""
    layers = build_layers(job.model, job.data, first=0, end=num_layers(job.model), seed=job.seed)
    dataset, outcome = job.dataset(), Outcome()
    weight = 1 / (job.micro_batches * job.replicas)
    for step in range(1, job.steps + 1):
        losses = []
        for replica in range(job.replicas):
            for micro_batch in range(job.micro_batches):
                stream, targets = dataset.batch(step, replica, micro_batch)
                with torch.autocast("cpu", torch.bfloat16, enabled=job.precision is Precision.BF16):
                    for layer in layers:
                        stream = layer.module(stream)
                loss = functional.cross_entropy(stream.float().flatten(0, -2), targets.flatten()) * weight
                loss.backward()
                losses.append(loss.detach())
        outcome.losses.append(float(torch.stack(losses).sum()))
    for layer in layers:
        for name, parameter in layer.module.named_parameters():
            if parameter.grad is not None:
                outcome.gradients[f"layers.{layer.index}.{name}"] = parameter.grad
    return outcome


def run_threads(job: Job) -> Outcome:
    """Run a pipeline whose stages are threads of this process."""
    activations = [QueueLink() for _ in range(job.stages - 1)]
    gradients = [QueueLink() for _ in range(job.stages - 1)]
    outcomes: dict[int, Outcome] = {}
    errors: list[BaseException] = []

    last = job.stages - 1
    all_links = [
        Links(
            activations_in=activations[stage - 1] if stage else None,
            gradients_out=gradients[stage - 1] if stage else None,
            activations_out=activations[stage] if stage < last else None,
            gradients_in=gradients[stage] if stage < last else None,
        )
        for stage in range(job.stages)
    ]
    # Made one after the other: torch's random state, from which initial weights come, is the whole process's.
    ranks = [make_runtime(job, rank=stage, links=links) for stage, links in enumerate(all_links)]

    barrier = threading.Barrier(job.stages)

    def work(stage: int) -> None:
        try:
            outcomes[stage] = run_steps(job, *ranks[stage], barrier=lambda: barrier.wait(timeout=60))
        except Exception as error:  # noqa: BLE001 # handed to the test, whatever it is
            errors.append(error)
            barrier.abort()
            for link in (all_links[stage].activations_out, all_links[stage].gradients_out):
                if isinstance(link, QueueLink):
                    link.close()

    threads = [threading.Thread(target=work, args=(stage,)) for stage in range(job.stages)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    if errors:
        raise errors[0]
    return merged([outcomes[stage] for stage in range(job.stages)])


def merged(outcomes: list[Outcome]) -> Outcome:
    """Lay the ranks' outcomes together: losses add up, each name's gradient is on the ranks of one stage."""
    whole = Outcome(losses=[sum(losses) for losses in zip(*(outcome.losses for outcome in outcomes), strict=True)])
    for outcome in outcomes:
        whole.gradients |= outcome.gradients
        whole.timelines += outcome.timelines
    return whole


def run_processes(
    function: Callable[..., Any], *arguments: Any, world: int, expected: int | None = None, timeout_s: float = 150.0
) -> list[Any]:
    """Call `function(rank, *arguments)` in `world` processes joined by gloo; give what they returned or raised.

    `expected` is how many live long enough to say so; all of them if None.
    """
    # Forks of a server that has imported torch, once for all tests: to import it takes each process seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "pipelinejob_trainer.runtime"])
    port = _free_port()
    results: Any = context.Queue()
    processes = [
        context.Process(target=_enter, args=(results, function, rank, arguments), kwargs={"world": world, "port": port})
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        collected = dict(pickle.loads(results.get(timeout=timeout_s)) for _ in range(expected or world))
    finally:
        for process in processes:
            process.join(timeout=20)
            process.kill()
    return [collected[rank] for rank in sorted(collected)]


def gloo_rank(rank: int, job: Job) -> Outcome:
    """Run one rank over gloo, gradients summed over replicas after the last step."""
    torch.set_num_threads(1)
    groups = process_groups(pipeline=job.stages, data=job.replicas)
    links = connect(groups, pipeline=job.stages, data=job.replicas, device=CPU)
    stage, recorder, runtime = make_runtime(job, rank=rank, links=links)
    outcome = run_steps(job, stage, recorder, runtime, barrier=distributed.barrier)
    sum_gradients((parameter for _, parameter in stage.named_parameters()), groups.data)
    return outcome


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
