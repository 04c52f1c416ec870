"""When a rank's parameters are updated: once at the end of a step, or several times within it.

An asynchronous schedule updates within the step, each time by the gradients gathered since the
previous update. Its learning rate follows the fraction of the step that is done. The norm over all
stages is never known at an update, so nothing is clipped, and the reported norm is that of each
rank's last update.
"""

import torch

from pipelinejob.schedules.actions import ActionKind
from pipelinejob_trainer.checkpoint.snapshot import NOTHING, Sharded
from pipelinejob_trainer.models.part import num_layers
from pipelinejob_trainer.optimizers.choice import hidden_matrices, make_optimizer
from pipelinejob_trainer.optimizers.rates import clip_factor, learning_rate
from pipelinejob_trainer.runtime.rank import Rank
from pipelinejob_trainer.runtime.reduction import SumOver, SumsOverGroups
from pipelinejob_trainer.training.totals import Totals


class Updates:
    """A rank's optimiser, and when it updates."""

    def __init__(self, rank: Rank, exchange: SumOver | None = None) -> None:
        """`exchange` is for a rank with shards, whose parts are gathered behind each update."""
        self._training = rank.plan.training
        self._shards, self._exchange = rank.shards, exchange
        parameters = rank.part.named_parameters()
        sharded = {} if rank.shards is None else rank.shards.own
        self.sharded = NOTHING
        if rank.shards is not None:
            self.sharded = Sharded(stretches=rank.shards.stretches, parameters=rank.shards.kept)
        self.optimizer = make_optimizer(
            self._training,
            (parameters | sharded).items(),
            hidden=hidden_matrices(rank.part, num_layers(rank.plan.model)),
            of_matrices=[name for name in sharded if parameters[name].dim() > 1],
        )
        # What lives on several ranks has the same gradient on all of them, and counts once; a
        # shard is on one.
        self._owned = frozenset(
            name for name in self.optimizer.parameters if rank.owns(name) or (name in sharded and rank.saves(name))
        )
        actions = rank.layout.schedule.ranks[rank.index]
        self._num_within_step = sum(action.kind is ActionKind.UPDATE for action in actions)
        self._last_squared_norm = torch.zeros((), dtype=torch.float64)
        self._step = 0

    def begin(self, step: int) -> None:
        """Set the step that begins."""
        self._step = step

    def within_step(self, number: int) -> None:
        """Update within a step; `number` counts from 1 in each step."""
        count = self._num_within_step
        if number == count:
            self._last_squared_norm = self.optimizer.squared_norm(self._owned)
        done = self._step - 1 + number / count
        self.optimizer.step(rate=learning_rate(self._training, done))
        self.optimizer.zero_gradients()

    def squared_norm(self) -> torch.Tensor:
        """Return this rank's part of the squared norm of all gradients, float64."""
        return self._last_squared_norm if self._num_within_step else self.optimizer.squared_norm(self._owned)

    def end(self, total: Totals) -> float:
        """Update at the end of a step, unless that was done within it; return the learning rate."""
        rate = learning_rate(self._training, self._step)
        if not self._num_within_step:
            factor = clip_factor(total.gradient_norm, self._training.clip_norm) * total.targets_per_counted
            self.optimizer.step(rate=rate, gradient_factor=factor)
            self.optimizer.zero_gradients()
            if self._shards is not None:
                assert isinstance(self._exchange, SumsOverGroups), "who shards has met over process groups"
                self._shards.gather(self._exchange)
        return rate

    def skip(self) -> float:
        """Leave weights and moments as they are; return the learning rate."""
        self.optimizer.zero_gradients()
        return learning_rate(self._training, self._step)
