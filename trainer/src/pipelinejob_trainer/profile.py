"""What each layer costs on this device: the measured Profile that a plan can be made from.

A layer is measured as the run will play it: as a stage of its own, with the run's micro-batch, precision and number of
threads, its backward pass whole or in halves. Blocks of a built-in model are equal, so one of them speaks for all.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median

import torch
from torch import distributed
from torch.distributed import HashStore, ProcessGroupGloo  # type: ignore[attr-defined] # torch re-exports them silently

from pipelinejob.cost import LayerCost, Profile
from pipelinejob.plan import CostSource, Plan
from pipelinejob.playing import schedule_of
from pipelinejob.spec import Device
from pipelinejob_trainer.config import Address, prepare_environment
from pipelinejob_trainer.data import Dataset, open_dataset
from pipelinejob_trainer.models import LayerEntry, build_layers, num_layers
from pipelinejob_trainer.optimizer import AdamW
from pipelinejob_trainer.process import choose_device
from pipelinejob_trainer.stage import Stage

_WARM_UPS = 2
_REPEATS = 7
_LAYER_BUDGET_S = 1.0  # a slow layer is measured fewer times, at least once
_PINGS = 20
_LOOPBACK = Address(host="127.0.0.1", port=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCost:
    """One hop between neighbouring stages."""

    latency_s: float
    bytes_per_s: float


def main(plan: Plan) -> None:
    """Print the Profile of a plan's model on this machine, as JSON."""
    sys.stdout.write(measure(plan).model_dump_json(by_alias=True, exclude_none=True) + "\n")


def measure(plan: Plan) -> Profile:
    """Measure a plan's layers and links; takes some seconds.

    Raises UserError for a model or text that cannot be used.
    """
    device = choose_device(plan)
    data = open_dataset(plan.data, schedule=plan.schedule, replicas=plan.parallelism.data, seed=plan.training.seed)
    layers = _measure_layers(plan, data, device)
    prepare_environment(_LOOPBACK)
    link = measure_link(max((layer.output_bytes for layer in layers[:-1]), default=0))
    # Each step: the text of the first stage's micro-batches, and an all-reduce of three numbers over all ranks.
    ranks = plan.parallelism.pipeline * plan.parallelism.data
    reading_s = _typical_s(lambda: data.batch(1, 0, 0)) * plan.schedule.micro_batches
    return Profile(
        source=CostSource.PROFILED,
        layers=tuple(layers),
        concurrency=None if plan.device is Device.GPU else max(1, _usable_cores() // torch.get_num_threads()),
        link_s=link.latency_s,
        link_bytes_per_s=link.bytes_per_s,
        step_overhead_s=reading_s + 2 * link.latency_s * math.ceil(math.log2(ranks)) if ranks > 1 else reading_s,
    )


def _measure_layers(plan: Plan, data: Dataset, device: torch.device) -> list[LayerCost]:
    count, is_split = num_layers(plan.model), schedule_of(plan).is_split
    tokens, targets = (each.to(device) for each in data.batch(1, 0, 0))
    costs: list[LayerCost] = []
    received = tokens
    for index in range(count):
        if plan.model.gpt is not None and 1 < index < count - 1:
            costs.append(costs[1].model_copy(update={"name": f"block-{index - 1}"}))
            continue
        entry = build_layers(plan.model, plan.data, first=index, end=index + 1, seed=plan.training.seed)[0]
        bench = _Bench(plan, entry, received, targets, device, is_last=index == count - 1)
        cost, received = bench.measure(is_split=is_split)
        costs.append(cost)
    return costs


@dataclass(slots=True)
class _Times:
    """What each pass took, micro-batch by micro-batch."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    backward_input: list[float] = field(default_factory=list)
    backward_weight: list[float] = field(default_factory=list)

    def typical(self, *, is_split: bool) -> tuple[float, float, float]:
        """Give the seconds of forward, input gradient and weight gradient.

        Where backward passes are whole, their halves are shares of the whole one, which walks the graph only once.
        """
        forward, whole, first, second = (
            median(times[_WARM_UPS:])
            for times in (self.forward, self.backward, self.backward_input, self.backward_weight)
        )
        scale = 1.0 if is_split else whole / (first + second)
        return forward, first * scale, second * scale


class _Bench:
    """One layer, as a stage of its own."""

    def __init__(
        self,
        plan: Plan,
        entry: LayerEntry,
        received: torch.Tensor,
        targets: torch.Tensor,
        device: torch.device,
        *,
        is_last: bool,
    ) -> None:
        self._name = entry.name
        self._device = device
        self._received = received
        self._targets = targets if is_last else None
        self._whole, self._split = (
            Stage(
                [entry],
                is_first=entry.index == 0,
                is_last=is_last,
                precision=plan.training.precision,
                device=device,
                is_split=is_split,
            )
            for is_split in (False, True)
        )
        entry.module.float()
        self._optimizer = AdamW(entry.named_parameters(), weight_decay=plan.training.weight_decay)
        self._learning_rate = plan.training.learning_rate

    def measure(self, *, is_split: bool) -> tuple[LayerCost, torch.Tensor]:
        """Give the layer's cost, and what the next layer receives."""
        output, activation_bytes = self._observe_forward()
        forward_s, backward_input_s, backward_weight_s = self._time_passes(output).typical(is_split=is_split)
        cost = LayerCost(
            name=self._name,
            forward_s=forward_s,
            backward_input_s=backward_input_s,
            backward_weight_s=backward_weight_s,
            optimizer_s=self._optimizer_s(),
            parameter_bytes=sum(each.nbytes for each in self._optimizer.parameters.values()),
            activation_bytes=activation_bytes,
            output_bytes=0 if self._whole.is_last else output.nbytes,
        )
        return cost, output

    def _time_passes(self, output: torch.Tensor) -> _Times:
        gradient = None if self._whole.is_last else torch.ones_like(output)
        times = _Times()
        began = time.perf_counter()
        for repeat in range(_WARM_UPS + _REPEATS):
            times.forward.append(self._seconds(lambda: self._forward(self._whole)))
            times.backward.append(self._seconds(lambda: self._whole.backward(0, gradient)))
            self._forward(self._split)
            times.backward_input.append(self._seconds(lambda: self._split.backward_input(0, gradient)))
            times.backward_weight.append(self._seconds(lambda: self._split.backward_weight(0)))
            if repeat >= _WARM_UPS and time.perf_counter() - began > _LAYER_BUDGET_S:
                break
        return times

    def _forward(self, stage: Stage) -> torch.Tensor:
        return stage.forward(0, self._received.detach().clone(), self._targets)

    def _observe_forward(self) -> tuple[torch.Tensor, int]:
        """Run forward once; count the distinct memory that it keeps for backward, parameters aside."""
        kept: dict[int, int] = {}
        known = {each.untyped_storage().data_ptr() for each in self._optimizer.parameters.values()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = self._forward(self._whole)
        self._whole.backward(0, None if self._whole.is_last else torch.ones_like(output))
        return output, sum(kept.values())

    def _optimizer_s(self) -> float:
        def update() -> None:
            self._optimizer.squared_norm()
            self._optimizer.step(1, rate=self._learning_rate * 0.0, gradient_factor=0.5)

        return median(self._seconds(update) for _ in range(_WARM_UPS + _REPEATS))

    def _seconds(self, work: Callable[[], object]) -> float:
        self._wait_for_device()
        began = time.perf_counter()
        work()
        self._wait_for_device()
        return time.perf_counter() - began

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def measure_link(num_bytes: int) -> LinkCost:
    """Send tensors to and fro over gloo's loopback; two threads stand for two stages."""
    store = HashStore()
    small, large = torch.zeros(1), torch.zeros(max(1, num_bytes // 4))
    echo = threading.Thread(target=_echo, args=(store, (small, large)), daemon=True)
    echo.start()
    group = _group(store, 0)
    latency_s, transfer_s = (_ping_s(group, tensor) for tensor in (small, large))
    echo.join()
    return LinkCost(latency_s=latency_s, bytes_per_s=large.nbytes / max(transfer_s - latency_s, 1e-6))


def _ping_s(group: distributed.ProcessGroup, tensor: torch.Tensor) -> float:
    times = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        group.send([tensor], 1, 0).wait()
        group.recv([tensor], 1, 0).wait()
        times.append((time.perf_counter() - began) / 2)
    return median(times)


def _group(store: HashStore, rank: int) -> distributed.ProcessGroup:
    return ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))  # type: ignore[return-value] # it is one, at run time


def _echo(store: HashStore, tensors: tuple[torch.Tensor, ...]) -> None:
    group = _group(store, 1)
    for tensor in tensors:
        buffer = torch.empty_like(tensor)
        for _ in range(_PINGS):
            group.recv([buffer], 0, 0).wait()
            group.send([buffer], 0, 0).wait()


def _typical_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
