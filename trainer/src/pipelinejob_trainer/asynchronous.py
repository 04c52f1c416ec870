"""What the actions of an asynchronous step do: each uses the weight version that it names; updates make new ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from pipelinejob.schedules.actions import Action, ActionKind
from pipelinejob.schedules.causes import WaitCause
from pipelinejob.timeline import SpanKind
from pipelinejob_trainer.errors import UserError
from pipelinejob_trainer.program import Operation
from pipelinejob_trainer.recorder import State
from pipelinejob_trainer.reduction import GRADIENT_KINDS, Reducer
from pipelinejob_trainer.stage import Weights
from pipelinejob_trainer.tasks import Training
from pipelinejob_trainer.versions import Versions

# Updates a rank's parameters by their gradients and forgets these; called with the number of the version that it makes.
Update = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Asynchronous(Training):
    """An asynchronous step. Its losses are told as parts of the whole step's mean, whatever an update gathers."""

    versions: Versions
    update: Update

    def leaves(self, action: Action) -> Callable[[], Weights]:
        return partial(self.versions.of, _version(action))

    def loss(self, action: Action) -> Callable[[torch.Tensor], None]:
        weights = self.seat.weights[action.micro_batch]
        share = float(weights.step / weights.gradient)
        return lambda loss: self.moment.add(loss * share)

    def after(self, position: int) -> Sequence[Operation]:
        action = self.seat.actions[position]
        if action.kind is ActionKind.UPDATE:
            return [partial(self._make_version, action.micro_batch, self._is_unused(action.micro_batch - 1, position))]
        version, after = _version(action), []
        if action.kind in GRADIENT_KINDS:
            after.append(partial(self.versions.collect, version))
        if version < self._newest(position) and self._is_unused(version, position):
            after.append(partial(self.versions.drop, version))
        return after

    def _make_version(self, number: int, is_last_unused: bool) -> None:  # noqa: FBT001 # bound by partial
        if self.reducer is not None:
            self.switch(_WAITING)
            for bucket in self.reducer.buckets:
                self.reducer.start(bucket)
            self.reducer.wait()
        self.switch(_UPDATING)
        if is_last_unused:
            self.versions.drop(number - 1)
        self.versions.make_room()
        self.update(number)

    def _is_unused(self, version: int, position: int) -> bool:
        """Say whether nothing after a place in the list uses a version."""
        return self._last_use.get(version, -1) <= position

    def _newest(self, position: int) -> int:
        return sum(action.kind is ActionKind.UPDATE for action in self.seat.actions[:position])

    @cached_property
    def _last_use(self) -> dict[int, int]:
        uses = enumerate(self.seat.actions)
        return {_version(action): place for place, action in uses if action.kind is not ActionKind.UPDATE}


def check_shares(reducer: Reducer | None) -> None:
    """Refuse parameters that ranks of one pipeline share: each rank has versions of its own, made at its own time.

    Raises UserError.
    """
    for bucket in () if reducer is None else reducer.buckets:
        if len(bucket.share.stages) > 1:
            stages = " and ".join(map(str, bucket.share.stages))
            raise UserError(
                "TiedAcrossStages",
                f"stages {stages} share a parameter, but an asynchronous schedule updates each by itself; use a"
                " synchronous schedule, or untie them (spec.model.gpt.tieEmbeddings: false)",
            )


def _version(action: Action) -> int:
    assert action.version is not None, "actions of an asynchronous schedule name their version"
    return action.version


_WAITING = State(SpanKind.IDLE, cause=WaitCause.BARRIER)
_UPDATING = State(SpanKind.OPTIMIZER)
