"""When a rank's parameters follow their gradients: once at the end of a step, or several times within it.

An asynchronous schedule updates within the step, each time by the gradients gathered since the update before. Its
learning rate goes by the share of the step that is done; there is no moment at which the norm over all stages is known,
so nothing is clipped, and the norm that is told is that of each rank's last update.
"""

import torch

from pipelinejob.schedules.actions import ActionKind
from pipelinejob_trainer.optimizer import AdamW, clip_factor, learning_rate
from pipelinejob_trainer.rank import Rank


class Updates:
    """A rank's optimiser, and when it steps."""

    def __init__(self, rank: Rank) -> None:
        self._training = rank.plan.training
        self.optimizer = AdamW(rank.part.named_parameters().items(), weight_decay=self._training.weight_decay)
        # What lives on several ranks has the same gradient on all of them, and counts once.
        self._owned = frozenset(filter(rank.owns, self.optimizer.parameters))
        actions = rank.layout.schedule.ranks[rank.index]
        self._num_within_step = sum(action.kind is ActionKind.UPDATE for action in actions)
        self._last_squared_norm = torch.zeros((), dtype=torch.float64)
        self._step = 0

    def begin(self, step: int) -> None:
        """Name the step that begins."""
        self._step = step

    def within_step(self, number: int) -> None:
        """Update within a step; `number` counts from 1 in each step."""
        count = self._num_within_step
        if number == count:
            self._last_squared_norm = self.optimizer.squared_norm(self._owned)
        done = self._step - 1 + number / count
        self.optimizer.step((self._step - 1) * count + number, rate=learning_rate(self._training, done))
        self.optimizer.zero_gradients()

    def squared_norm(self) -> torch.Tensor:
        """Give this rank's part of the squared norm of all gradients, float64."""
        return self._last_squared_norm if self._num_within_step else self.optimizer.squared_norm(self._owned)

    def end(self, gradient_norm: float) -> float:
        """Update at the end of a step, unless that was done within it; give the learning rate."""
        rate = learning_rate(self._training, self._step)
        if not self._num_within_step:
            factor = clip_factor(gradient_norm, self._training.clip_norm)
            self.optimizer.step(self._step, rate=rate, gradient_factor=factor)
            self.optimizer.zero_gradients()
        return rate
