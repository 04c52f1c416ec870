"""Plays a rank's list of actions. It knows no schedule by name: what to do, and in which order, is all in the list.

What to receive and send follows from an action and the stage's place: F3 needs the activation of micro-batch 3 from
upstream and gives one downstream, B3 the gradient from downstream and gives one upstream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pipelinejob.schedule import Action, ActionKind, wait_causes
from pipelinejob.timeline import SpanKind
from pipelinejob_trainer.data import mix
from pipelinejob_trainer.link import Links
from pipelinejob_trainer.recorder import IDLE, Recorder, State
from pipelinejob_trainer.stage import Stage


class Batches(Protocol):
    """What a Dataset gives."""

    def batch(self, step: int, replica: int, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give inputs and targets of a micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step gave beside gradients.

    `loss_sum` is this rank's part of the global batch's mean loss: summed over all ranks it is that mean, in nats per
    token. It is zero on all but last stages, and stays on the device.
    """

    loss_sum: torch.Tensor


class Runtime:
    """A stage at work on its list of actions."""

    def __init__(
        self,
        *,
        actions: Sequence[Action],
        stage: Stage,
        links: Links,
        recorder: Recorder,
        batches: Batches | None,
        seed: int,
        replica: int = 0,
    ) -> None:
        """Take what this rank has; `batches` may be None on a stage that is neither first nor last."""
        self._actions = tuple(actions)
        self._stage = stage
        self._links = links
        self._recorder = recorder
        self._batches = batches
        self._replica = replica
        self._seed = seed
        self._causes = wait_causes(self._actions)

    def run_step(self, step: int) -> StepResult:
        """Do forward and backward of a whole step; gradients are added to what the parameters hold.

        Raises PeerLostError when a neighbour went away, UserError for data or layers that cannot be used.
        """
        self._recorder.begin_step(step)
        # Dropout and the like draw from torch's state; set from the step's number, it needs no place in a checkpoint.
        torch.manual_seed(mix(self._seed, step, self._replica, self._stage.first_layer))
        self._expect()
        losses = []
        for action, cause in zip(self._actions, self._causes, strict=True):
            if action.kind is ActionKind.FORWARD:
                losses.append(self._forward(step, action.micro_batch, cause))
            else:
                self._backward(action.micro_batch, cause)
        self._flush()
        self._recorder.switch(IDLE)
        loss_sum = torch.stack(losses).sum() if self._stage.is_last else torch.zeros((), device=self._stage.device)
        return StepResult(loss_sum=loss_sum)

    def _expect(self) -> None:
        for kind, receiver in (
            (ActionKind.FORWARD, self._links.activations_in),
            (ActionKind.BACKWARD, self._links.gradients_in),
        ):
            if receiver is not None:
                receiver.expect([action.micro_batch for action in self._actions if action.kind is kind])

    def _forward(self, step: int, micro_batch: int, cause: str) -> torch.Tensor:
        inputs, targets = self._data(step, micro_batch)
        if self._links.activations_in is not None:
            self._recorder.switch(State(SpanKind.RECV, micro_batch, cause))
            inputs = self._links.activations_in.receive(micro_batch)
        assert inputs is not None, "a stage is first or has a link upstream"
        self._recorder.switch(State(SpanKind.FORWARD, micro_batch))
        output = self._stage.forward(micro_batch, inputs, targets)
        if self._links.activations_out is not None:
            self._recorder.switch(State(SpanKind.SEND, micro_batch))
            self._links.activations_out.send(micro_batch, output)
        return output

    def _backward(self, micro_batch: int, cause: str) -> None:
        gradient = None
        if self._links.gradients_in is not None:
            self._recorder.switch(State(SpanKind.RECV, micro_batch, cause))
            gradient = self._links.gradients_in.receive(micro_batch)
        self._recorder.switch(State(SpanKind.BACKWARD_INPUT, micro_batch))
        gradient = self._stage.backward(micro_batch, gradient)
        if self._links.gradients_out is not None:
            assert gradient is not None, "only the first stage gives no gradient, and it has no link upstream"
            self._recorder.switch(State(SpanKind.SEND, micro_batch))
            self._links.gradients_out.send(micro_batch, gradient)

    def _data(self, step: int, micro_batch: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        stage = self._stage
        if not (stage.is_first or stage.is_last):
            return None, None
        assert self._batches is not None, "first and last stages have data"
        self._recorder.switch(State(SpanKind.DATA, micro_batch))
        inputs, targets = self._batches.batch(step, self._replica, micro_batch)
        return (
            inputs.to(stage.device) if stage.is_first else None,
            targets.to(stage.device) if stage.is_last else None,
        )

    def _flush(self) -> None:
        self._recorder.switch(State(SpanKind.SEND))
        for sender in (self._links.activations_out, self._links.gradients_out):
            if sender is not None:
                sender.flush()
