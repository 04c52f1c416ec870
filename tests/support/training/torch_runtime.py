"""The same lists of actions, played by torch's own pipeline runtime: a second oracle, and a peer to be measured beside.

It is `torch.distributed.pipelining.schedules._PipelineScheduleRuntime` of torch 2.15: private,
changed in every release so far, and imported only when it is asked for, as that takes seconds.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn

from pipelinejob.schedules.actions import ActionKind, Schedule
from pipelinejob.spec.job import Precision
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.losses.loss import cross_entropy
from pipelinejob_trainer.models.part import LayerEntry
from pipelinejob_trainer.runtime.feed import Batches
from pipelinejob_trainer.runtime.runtime import StepResult
from pipelinejob_trainer.runtime.tasks import loss_weights
from pipelinejob_trainer.stage.randomness import reseeder, seed_of_pass

if TYPE_CHECKING:
    from torch.distributed.pipelining.schedules import _Action, _PipelineScheduleRuntime
    from torch.distributed.pipelining.stage import PipelineStage, PipelineStageInfo


def reason_against(schedule: Schedule, rows: Sequence[int]) -> str | None:
    """Say why torch cannot play a schedule; None if it can. `rows` are the sequences of each micro-batch."""
    if len(schedule.routes) > 1:
        return "torch's runtime has one rank for each stage; this schedule has two, one for each direction"
    if schedule.is_asynchronous:
        return "torch's runtime knows no updates within a step, nor weight versions"
    if schedule.is_forward_only:
        return "torch's runtime takes no list without backward passes"
    if len(set(rows)) > 1:
        return "torch's runtime has one shape for all micro-batches; these have different numbers of sequences"
    return None


class TorchRuntime:
    """A rank at work on its list of actions, in torch's way; takes and gives what `Runtime` does.

    Differences: stages never recompute; torch's first stage does nothing in `I` and a full
    backward pass in `W`. With equal sums in equal order the gradients have the same bits.
    Gradients of what several ranks hold, copies of a replica or tied parameters, are this rank's
    part; nothing is summed over ranks.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        rank: int,
        chunks: Sequence[Sequence[LayerEntry]],
        batches: Batches | None,
        rows: Sequence[int],
        seed: int,
        device: torch.device,
        group: distributed.ProcessGroup | None = None,
        precision: Precision = Precision.FP32,
        replica: int = 0,
        num_replicas: int = 1,
    ) -> None:
        """Take what this rank has; `group` are the ranks of the pipeline, in order (None: the world).

        Raises UserError for a schedule that torch cannot play.
        """
        reason = reason_against(schedule, rows)
        if reason is not None:
            raise UserError("TorchCannotPlay", f"{reason}; use this project's runtime")
        self._batches = batches
        self._replica = replica
        self._num_micro_batches = schedule.num_micro_batches
        self._device = device
        self._origin = _order_at_the_end(schedule)
        self._is_first, self._is_last = schedule.routes[0][0] == rank, schedule.routes[0][-1] == rank
        self._pass_seed = partial(_pass_seed, seed, replica * schedule.num_micro_batches, self._origin)
        self._step = 0
        stages = [
            self._stage(_Chunk(layers, precision, device), held.stage, schedule.num_stages, group)
            for held, layers in zip(schedule.held_by(rank), chunks, strict=True)
        ]
        weight = float(loss_weights(schedule, rows, replicas=num_replicas)[0].gradient)
        self._runtime = _runtime(schedule, stages, partial(_loss, weight))

    def run_step(self, step: int) -> StepResult:
        """Do forward and backward of a whole step; gradients are added to what the parameters hold.

        Raises RuntimeError, whatever went wrong.
        """
        self._step = step
        inputs, targets = self._read(step) if self._is_first or self._is_last else ([], [])
        losses: list[torch.Tensor] = []
        self._runtime.step(
            arg_mbs=[(each,) for each in inputs] if self._is_first else [()] * self._num_micro_batches,
            target_mbs=targets if self._is_last else None,
            losses=losses,
            return_outputs=False,
        )
        num_targets = sum(each.numel() for each in targets)
        return StepResult(
            loss_sum=torch.stack(losses).sum().detach() if losses else torch.zeros(()),
            counted=torch.tensor(float(num_targets), dtype=torch.float64),
            num_targets=num_targets,
        )

    def _read(self, step: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        assert self._batches is not None, "first and last stages have data"
        pairs = [self._batches.batch(step, self._replica, micro_batch) for micro_batch in self._origin]
        inputs = [each.tokens.to(self._device, copy=True) for each in pairs]
        return inputs, [each.targets.to(self._device) for each in pairs]

    def _stage(
        self, chunk: "_Chunk", index: int, num_stages: int, group: distributed.ProcessGroup | None
    ) -> "PipelineStage":
        from torch.distributed.pipelining import PipelineStage  # seconds

        stage = PipelineStage(chunk, index, num_stages, self._device, group=group)

        @contextmanager
        def seeded(info: "PipelineStageInfo") -> Iterator[None]:
            chunk.seed = self._pass_seed(self._step, info.microbatch_index)
            yield

        stage.register_forward_context(seeded)
        return stage


class _Chunk(nn.Module):
    """A chunk's layers as one module."""

    def __init__(self, layers: Sequence[LayerEntry], precision: Precision, device: torch.device) -> None:
        super().__init__()
        self.seed = 0
        self._indices = tuple(layer.index for layer in layers)
        self._layers = nn.ModuleList(layer.module.to(device) for layer in layers)
        self._is_bf16 = precision is Precision.BF16
        self._device_type = device.type
        self._reseed = reseeder(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._is_bf16):
            for index, layer in zip(self._indices, self._layers, strict=True):
                self._reseed(self.seed, index)
                x = layer(x)
        return x


def _order_at_the_end(schedule: Schedule) -> tuple[int, ...]:
    """Return micro-batches in the order in which they reach the last stage.

    torch finds the loss of its micro-batch k by counting losses, so its micro-batch 0 must come
    there first.
    """
    last = schedule.num_stages - 1
    rank = schedule.routes[0][last]
    return tuple(
        action.micro_batch
        for action in schedule.ranks[rank]
        if action.kind is ActionKind.FORWARD and schedule.stage_of(rank, action) == last
    )


def _pass_seed(seed: int, first_sample: int, origin: Sequence[int], step: int, number: int) -> int:
    return seed_of_pass(seed, step, first_sample + origin[number])


def _loss(weight: float, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits, targets) * weight


def _runtime(
    schedule: Schedule, stages: "list[PipelineStage]", loss: Callable[..., torch.Tensor]
) -> "_PipelineScheduleRuntime":
    from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime  # seconds

    runtime = _PipelineScheduleRuntime(  # type: ignore[no-untyped-call] # torch leaves it untyped
        list(stages), schedule.num_micro_batches, loss_fn=loss, scale_grads=False
    )
    runtime.pipeline_order = dict(enumerate(_lists(schedule)))
    runtime._prepare_schedule_with_comms(runtime.pipeline_order)  # there is no public way
    return runtime


def _lists(schedule: Schedule) -> "Iterator[list[_Action | None]]":
    """Return each rank's list in torch's words."""
    from torch.distributed.pipelining.schedules import _Action, _ComputationType  # seconds

    kinds = {
        ActionKind.FORWARD: _ComputationType.FORWARD,
        ActionKind.BACKWARD: _ComputationType.FULL_BACKWARD,
        ActionKind.INPUT: _ComputationType.BACKWARD_INPUT,
        ActionKind.WEIGHT: _ComputationType.BACKWARD_WEIGHT,
    }
    number = {micro_batch: place for place, micro_batch in enumerate(_order_at_the_end(schedule))}
    for rank, actions in enumerate(schedule.ranks):
        yield [_Action(schedule.stage_of(rank, a), kinds[a.kind], number[a.micro_batch]) for a in actions]
