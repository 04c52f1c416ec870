"""The actions of an asynchronous step: each uses the weight version that it names.

Updates make new ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ParamSpec, TypeVar

import torch

from pipelinejob.base.timeline import SpanKind
from pipelinejob.schedules.actions import Action, ActionKind
from pipelinejob.schedules.causes import WaitCause
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.nesting import Gradients, Passed
from pipelinejob_trainer.data.micro_batch import Inputs
from pipelinejob_trainer.runtime.program import Operation
from pipelinejob_trainer.runtime.recorder import State
from pipelinejob_trainer.runtime.reduction import Reducer
from pipelinejob_trainer.runtime.sharding import ShardedReducer
from pipelinejob_trainer.runtime.tasks import TrainingTasks
from pipelinejob_trainer.runtime.weight_versions import Versions

# Updates a rank's parameters and clears their gradients; its argument is the number of the new
# version.
Update = Callable[[int], None]

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class AsynchronousTasks(TrainingTasks):
    """The tasks of an asynchronous step.

    Losses are parts of the whole step's mean, whatever an update gathers.
    """

    versions: Versions
    update: Update

    def forward(self, action: Action) -> Callable[[Passed | Inputs, torch.Tensor | None], Passed]:
        return self._by_version(action, super().forward(action))

    def ahead(self, action: Action) -> Operation | None:
        run = super().ahead(action)
        return None if run is None else self._by_version(action, run)

    def gradient(self, action: Action) -> Callable[[Gradients | None], Gradients | None]:
        return self._by_version(action, super().gradient(action))

    def weight(self, action: Action) -> Operation:
        return self._by_version(action, super().weight(action))

    def loss(self, action: Action) -> Callable[[torch.Tensor], None]:
        weights = self.role.weights[action.micro_batch]
        share = float(weights.step / weights.gradient)
        return lambda loss: self.running.add(loss * share)

    def after(self, position: int) -> Sequence[Operation]:
        action = self.role.actions[position]
        if action.kind is ActionKind.UPDATE:
            return [partial(self._make_version, action.micro_batch, self._is_unused(action.micro_batch - 1, position))]
        version = _version(action)
        if version < self._newest(position) and self._is_unused(version, position):
            return [partial(self.versions.drop, version)]
        return []

    def _make_version(self, number: int, is_last_unused: bool) -> None:  # noqa: FBT001 # bound by partial
        if self.reducer is not None:
            self.switch(_WAITING)
            for bucket in self.reducer.buckets:
                self.reducer.start(bucket)
            self.reducer.wait()
        self.switch(_UPDATING)
        if is_last_unused:
            self.versions.drop(number - 1)
        with self.versions.making_next():
            self.update(number)

    def _by_version(self, action: Action, run: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
        """Wrap a call so that it uses the weight version that an action names."""
        versions, version = self.versions, _version(action)

        def with_version(*given: _Given.args, **named: _Given.kwargs) -> _Result:
            versions.use(version)
            return run(*given, **named)

        return with_version

    def _is_unused(self, version: int, position: int) -> bool:
        """Return whether no action after a position uses a version."""
        return self._last_use.get(version, -1) <= position

    def _newest(self, position: int) -> int:
        return sum(action.kind is ActionKind.UPDATE for action in self.role.actions[:position])

    @cached_property
    def _last_use(self) -> dict[int, int]:
        uses = enumerate(self.role.actions)
        return {_version(action): place for place, action in uses if action.kind is not ActionKind.UPDATE}


def check_shares(reducer: Reducer | ShardedReducer | None) -> None:
    """Refuse parameters shared within a pipeline: each rank makes its versions at other times.

    Raises UserError.
    """
    for bucket in () if reducer is None else reducer.buckets:
        if len(bucket.share.stages) > 1:
            stages = " and ".join(map(str, bucket.share.stages))
            raise UserError(
                "TiedAcrossStages",
                f"stages {stages} share a parameter, but an asynchronous schedule updates each by itself; use a"
                " synchronous schedule, or untie them (tieEmbeddings: false)",
            )


def _version(action: Action) -> int:
    assert action.version is not None, "actions of an asynchronous schedule name their version"
    return action.version


_WAITING = State(SpanKind.IDLE, cause=WaitCause.BARRIER)
_UPDATING = State(SpanKind.OPTIMIZER)
