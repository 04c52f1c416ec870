"""A case as plain torch trains it: one process, one module, torch.optim.AdamW, one micro-batch after the other.

What docs/limits.md states is here too, each once. Targets that do not count are left out of the
mean over the whole global batch, which scales what layers add to gradients by themselves, too;
where a schedule is asynchronous, of the mean over their own micro-batch. Masters of 16 bits are
fp32. A step's copies of the buffers (one for each replica and each direction) begin equal, and
what the first of them has become is what goes on. What enters a stage has a gradient, if nothing
before it had one. An asynchronous schedule's micro-batch uses the weights of the update that the
schedule's list names for its stage.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipelinejob.contract.plan import Plan
from pipelinejob.planning.playing import schedule_of
from pipelinejob.schedules.actions import GIVES_GRADIENT, ActionKind, Schedule
from pipelinejob.spec.job import Precision, ScheduleSpec
from pipelinejob_trainer.base.seeds import mix, seed_python_and_numpy
from pipelinejob_trainer.data.dataset import Dataset, open_dataset, open_evaluation
from pipelinejob_trainer.data.micro_batch import IGNORED
from pipelinejob_trainer.optimizers.rates import learning_rate
from pipelinejob_trainer.stage.randomness import reseeder, seed_of_pass
from support.training.masks import masked
from zoo.case import Case
from zoo.model import layers

RESEED = reseeder(torch.device("cpu"))
# Of the largest gradient of a tensor in a step: what is no larger is rounding alone, in any
# direction, of which AdamW makes a step like of all else.
NOISE = 1e-4


@dataclass(kw_only=True)
class Step:
    """What a step gave."""

    loss: float
    gradient_norm: float
    evaluation_loss: float | None = None


@dataclass(kw_only=True)
class Plain:
    """What came of a case; `faint`, by the names that `named_parameters` gives, are entries as said at `NOISE`."""

    steps: list[Step]
    module: nn.Module
    faint: dict[str, torch.Tensor]


@dataclass(kw_only=True)
class _Copy:
    """What a copy of the model has for itself: gradients so far, and buffers while a step runs."""

    replica: int
    route: int
    gradients: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    buffers: list[torch.Tensor] = field(default_factory=list)


def train(case: Case, text: Path) -> Plain:
    """Train a case the plain way. Raises what torch raises."""
    whole = _made(case)
    optimizer = _optimizer(whole)
    steps: list[Step] = []
    faint: dict[nn.Parameter, torch.Tensor] = {}
    samples = 0
    for leg in case.legs:
        before = steps[-1].loss if steps else 0.0
        run = _Run(case, case.plan(leg, text), whole, optimizer, samples=samples, loss_before=before, faint=faint)
        steps += run.steps(len(steps) + 1, leg.until)
        samples = run.samples
    named = whole.named_parameters(remove_duplicate=False)
    return Plain(steps=steps, module=whole, faint={name: faint[each] for name, each in named if each in faint})


def _made(case: Case) -> nn.Module:
    with _seeded(case.seed, 0):
        elements = layers(habits=" ".join(case.habits))
    modules = []
    for index, element in enumerate(elements):
        with _seeded(case.seed, index):
            modules.append(element if isinstance(element, nn.Module) else element())
    whole = nn.Module()
    whole.layers = nn.ModuleList(modules)
    for parameter in whole.parameters():
        if parameter.dtype is torch.bfloat16:
            parameter.data = parameter.data.float()
    return whole.train()


def _optimizer(whole: nn.Module) -> torch.optim.AdamW:
    trained = [each for each in whole.parameters() if each.requires_grad]
    groups = [
        {"params": [each for each in trained if each.dim() > 1]},
        {"params": [each for each in trained if each.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=True)


class _Run:
    """One leg, which goes on after so many samples."""

    def __init__(
        self,
        case: Case,
        plan: Plan,
        whole: nn.Module,
        optimizer: torch.optim.AdamW,
        *,
        samples: int,
        loss_before: float,
        faint: dict[nn.Parameter, torch.Tensor],
    ) -> None:
        self.samples = samples
        self._faint = faint
        self._loss_before = loss_before
        self._case = case
        self._plan = plan
        self._whole = whole
        self._optimizer = optimizer
        self._schedule = schedule_of(self._plan)
        self._borders = {first for first, _ in self._plan.cuts if first}
        self._rows = self._plan.schedule.micro_batch_sizes
        self._data = _dataset(self._plan)
        self._evaluation_data = _evaluation_dataset(self._plan, self._data)
        self._copies = [
            _Copy(replica=r, route=d) for r in range(plan.parallelism.data) for d in range(len(self._schedule.routes))
        ]
        self._updates = Updates(self._schedule, self._plan)

    def steps(self, first: int, last: int) -> Iterator[Step]:
        for number in range(first, last + 1):
            step = self._step(number)
            evaluation = self._plan.evaluation
            if evaluation and (number % evaluation.interval_steps == 0 or number == self._case.steps):
                step.evaluation_loss = self._evaluated(evaluation.batches)
            yield step

    def _step(self, number: int) -> Step:
        losses, norm = [], 0.0
        for copy in self._copies:
            copy.buffers = _buffers_of(self._whole)
        history = [self._weights()]
        for group in self._updates.groups:
            for copy in self._copies:
                for k in (k for k in group if self._schedule.route_of[k] == copy.route):
                    if self._schedule.is_asynchronous:
                        self._use(history, k)
                    losses.append(self._pass(copy, number, k, self._weight(copy, k, group)))
            if self._schedule.is_asynchronous:
                self._use_all(history[-1])
            elif not self._counted_by_all(group):
                return self._skipped()
            scale = 1.0 if self._schedule.is_asynchronous else self._num_targets() / self._counted_by_all(group)
            norm = self._update(number - 1 + len(history) / len(self._updates.groups), scale)
            history.append(self._weights() if self._schedule.is_asynchronous else {})
        self._end()
        self._loss_before = float(torch.stack(losses).sum()) * scale
        return Step(loss=self._loss_before, gradient_norm=norm)

    def _skipped(self) -> Step:
        """Leave weights and moments as they were; buffers have seen the batch."""
        for copy in self._copies:
            copy.gradients.clear()
        self._end()
        return Step(loss=self._loss_before, gradient_norm=0.0)

    def _end(self) -> None:
        _put_buffers(self._whole, self._copies[0].buffers)
        self.samples += self._plan.parallelism.data * sum(self._rows)

    def _weight(self, copy: _Copy, k: int, group: Sequence[int]) -> Fraction:
        """Return the weight of a micro-batch's mean; of what counts, in sum over all targets, unless asynchronous."""
        replicas = self._plan.parallelism.data
        if self._schedule.is_asynchronous:
            return Fraction(self._rows[k], replicas * sum(self._rows[other] for other in group))
        return Fraction(self._counted(copy.replica, k), self._num_targets())

    def _num_targets(self) -> int:
        return self._plan.parallelism.data * sum(self._rows) * self._case.sequence_length

    def _counted_by_all(self, group: Sequence[int]) -> int:
        return sum(self._counted(r, k) for r, k in product(range(self._plan.parallelism.data), group))

    def _counted(self, replica: int, k: int) -> int:
        _, targets = self._batch(self._data, self.samples, replica, k)
        return int((targets != IGNORED).sum())

    def _pass(self, copy: _Copy, step: int, k: int, weight: Fraction) -> torch.Tensor:
        """Run a micro-batch forth and back for a copy; give its part of the step's loss."""
        replicas = self._plan.parallelism.data
        _put_buffers(self._whole, copy.buffers)
        _put_gradients(self._whole, copy.gradients)
        sample = copy.replica * len(self._rows) + k
        batch = self._batch(self._data, self.samples, copy.replica, k)
        loss = self._loss(batch, seed_of_pass(self._case.seed, step, sample))
        (loss * float(weight)).backward()
        copy.gradients = _take_gradients(self._whole)
        copy.buffers = _buffers_of(self._whole)
        if not self._schedule.is_asynchronous:
            return loss.detach() * float(weight)
        return loss.detach() * float(weight) * float(Fraction(self._rows[k], replicas * sum(self._rows)) / weight)

    def _loss(self, batch: tuple[torch.Tensor, torch.Tensor], seed: int | None) -> torch.Tensor:
        stream, targets = batch
        is_bf16 = self._case.precision is Precision.BF16
        with torch.autocast("cpu", torch.bfloat16) if is_bf16 else nullcontext():
            for index, layer in enumerate(self._whole.layers):
                if seed is not None:
                    RESEED(seed, index)
                stream = layer(self._entering(stream) if index in self._borders else stream)
        counts_something = bool((targets != IGNORED).any())
        reduction = "mean" if counts_something else "sum"  # torch's mean over nothing is a NaN
        return functional.cross_entropy(stream.flatten(0, -2).float(), targets.flatten(), reduction=reduction)

    def _batch(self, data: Dataset, before: int, replica: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a micro-batch of the step that begins after so many samples; nothing else holds its tensors."""
        first = before + replica * sum(self._rows) + sum(self._rows[:k])
        samples = [data.batch(number + 1, 0, 0) for number in range(first, first + self._rows[k])]
        inputs, targets = (torch.cat(each) for each in zip(*((s.tokens, s.targets) for s in samples), strict=True))
        return inputs, masked(targets) if self._case.is_masked else targets

    def _entering(self, stream: Any) -> Any:
        if not isinstance(stream, torch.Tensor):
            return stream
        is_alone = torch.is_grad_enabled() and stream.is_floating_point() and not stream.requires_grad
        return stream.clone().requires_grad_().clone() if is_alone else stream

    @torch.no_grad()
    def _evaluated(self, batches: int) -> float:
        self._whole.eval()
        replicas, rows = self._plan.parallelism.data, self._rows
        total, counted = 0.0, 0
        for before in range(0, batches * replicas * sum(rows), replicas * sum(rows)):
            for replica, k in product(range(replicas), range(len(rows))):
                batch = self._batch(self._evaluation_data, before, replica, k)
                count = int((batch[1] != IGNORED).sum())
                total += float(self._loss(batch, None)) * count
                counted += count
        self._whole.train()
        return total / counted

    def _update(self, done: float, scale: float) -> float:
        """Step by all copies' gradients, also those that layers add by themselves, times a scale; give their norm."""
        _put_gradients(self._whole, self._total())
        trained = [each for each in self._whole.parameters() if each.grad is not None]
        if scale != 1.0:
            torch._foreach_mul_([each.grad for each in trained], scale)
        for each in trained:
            sizes = each.grad.abs()
            is_faint = (sizes > 0) & (sizes <= NOISE * sizes.max()) if sizes.numel() else sizes > 0
            self._faint[each] = self._faint.get(each, torch.zeros_like(is_faint)) | is_faint
        norms = torch.stack([torch._foreach_norm([each.grad])[0].double() for each in trained])
        norm = float(norms.square().sum().sqrt())
        bound = self._plan.training.clip_norm
        if bound and norm > bound:
            for each in trained:
                each.grad.mul_(bound / norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._plan.training, done)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def _total(self) -> dict[nn.Parameter, torch.Tensor]:
        """Add the copies' gradients up, each parameter's in the order of the ranks that hold it."""
        total: dict[nn.Parameter, torch.Tensor] = {}
        for layer, module in enumerate(self._whole.layers):
            for copy in sorted(self._copies, key=lambda each: self._updates.rank_of(layer, each)):
                for parameter in module.parameters():
                    if parameter in copy.gradients:
                        gradient = copy.gradients.pop(parameter)
                        total[parameter] = total[parameter] + gradient if parameter in total else gradient
        return total

    def _weights(self) -> dict[nn.Parameter, torch.Tensor]:
        return {each: each.detach().clone() for each in self._whole.parameters()}

    def _use(self, history: Sequence[dict[nn.Parameter, torch.Tensor]], k: int) -> None:
        """Put the weights in place that each stage uses for a micro-batch."""
        for layer, module in enumerate(self._whole.layers):
            weights = history[self._updates.version_of(layer, k)]
            for parameter in module.parameters():
                parameter.data.copy_(weights[parameter])

    def _use_all(self, weights: dict[nn.Parameter, torch.Tensor]) -> None:
        for parameter, value in weights.items():
            parameter.data.copy_(value)


class Updates:
    """When a schedule's parameters are updated, and which update's weights a stage uses: read off its list.

    `groups` are the micro-batches that each update of a step gathers; all, once, where the
    schedule is synchronous.
    """

    def __init__(self, schedule: Schedule, plan: Plan) -> None:
        self._schedule = schedule
        self._plan = plan
        self.groups = _groups(schedule) if schedule.is_asynchronous else [list(range(schedule.num_micro_batches))]
        self._versions = {
            (rank, action.micro_batch): action.version
            for rank, actions in enumerate(schedule.ranks)
            for action in actions
            if action.kind is ActionKind.FORWARD
        }

    def version_of(self, layer: int, k: int) -> int:
        return self._versions[self._schedule.routes[0][self._stage_of(layer)], k]

    def rank_of(self, layer: int, copy: _Copy) -> int:
        route = self._schedule.routes[copy.route]
        return copy.replica * self._plan.parallelism.pipeline + route[self._stage_of(layer)]

    def _stage_of(self, layer: int) -> int:
        return next(stage for stage, (first, end) in enumerate(self._plan.cuts) if first <= layer < end)


def _groups(schedule: Schedule) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    for action in schedule.ranks[schedule.routes[0][-1]]:
        if action.kind is ActionKind.UPDATE:
            groups.append([])
        elif action.kind in GIVES_GRADIENT:
            groups[-1].append(action.micro_batch)
    return [sorted(group) for group in groups if group]


def _dataset(plan: Plan) -> Dataset:
    """Return the text sample by sample: batch n is sample n - 1."""
    return open_dataset(
        plan.data,
        schedule=ScheduleSpec(micro_batches=1, micro_batch_size=1),
        replicas=1,
        seed=plan.training.seed,
        evaluation=plan.evaluation,
    )


def _evaluation_dataset(plan: Plan, beside: Dataset) -> Dataset:
    return beside if plan.evaluation is None else open_evaluation(plan.data, plan.evaluation, training=beside)


def _buffers_of(whole: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in whole.buffers()]


def _put_buffers(whole: nn.Module, values: Sequence[torch.Tensor]) -> None:
    for buffer, value in zip(whole.buffers(), values, strict=True):
        buffer.copy_(value)


def _put_gradients(whole: nn.Module, gradients: dict[nn.Parameter, torch.Tensor]) -> None:
    for parameter in whole.parameters():
        parameter.grad = gradients.get(parameter)


def _take_gradients(whole: nn.Module) -> dict[nn.Parameter, torch.Tensor]:
    taken = {each: each.grad for each in whole.parameters() if each.grad is not None}
    for each in taken:
        each.grad = None
    return taken


@contextmanager
def _seeded(seed: int, index: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(mix(seed, index))
        seed_python_and_numpy(mix(seed, index))
        yield
