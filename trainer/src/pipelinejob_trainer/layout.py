"""Where everything of a model stands: which layers on which ranks of a pipeline.

What stands on several ranks is equal on all of them, and one speaks for it. Every rank reckons it from plan and schedule by itself; nothing of it is sent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelinejob.plan import LayerRange
from pipelinejob.schedules.actions import Schedule
from pipelinejob_trainer.models import layer_of


@dataclass(frozen=True, slots=True)
class Layout:
    """A schedule's stages as stretches of layers: `cuts[stage]` is [first, end)."""

    schedule: Schedule
    cuts: Sequence[LayerRange]

    def stretches(self, rank: int) -> tuple[LayerRange, ...]:
        """Give the layers of each of a rank's chunks, in the order of `Schedule.held_by`."""
        return tuple(self.cuts[held.stage] for held in self.schedule.held_by(rank))

    def ranks_of(self, layer: int) -> frozenset[int]:
        """Give the ranks that hold a layer: one for each route."""
        stage = self._stage_of(layer)
        return frozenset(route[stage] for route in self.schedule.routes)

    def holders(self, name: str, shared: Mapping[str, Iterable[int]]) -> frozenset[int]:
        """Give the ranks that hold a parameter; `shared` is `models.Part`'s."""
        return frozenset().union(*map(self.ranks_of, shared.get(name, (layer_of(name),))))

    def owner_of(self, name: str) -> int:
        """Give the rank that speaks for a parameter or buffer: the one that has its layer on the first route."""
        return self.schedule.routes[0][self._stage_of(layer_of(name))]

    def _stage_of(self, layer: int) -> int:
        return next(stage for stage, (first, end) in enumerate(self.cuts) if first <= layer < end)
