"""Where everything of a model stands: which layers on which ranks of a pipeline.

What stands on several ranks is equal on all of them, and one speaks for it. Every rank reckons all of it from plan and
schedule by itself; nothing is sent.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelinejob.plan import LayerRange, Plan
from pipelinejob.playing import schedule_of
from pipelinejob.schedules.actions import Schedule
from pipelinejob_trainer.models import Part, layer_of
from pipelinejob_trainer.reduction import Share, share_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A schedule's stages as stretches of layers: `cuts[stage]` is [first, end)."""

    schedule: Schedule
    cuts: Sequence[LayerRange]
    num_replicas: int = 1

    def stretches(self, rank: int) -> tuple[LayerRange, ...]:
        """Give the layers of each of a rank's chunks, in the order of `Schedule.held_by`."""
        return tuple(self.cuts[held.stage] for held in self.schedule.held_by(rank))

    def shares(self, part: Part) -> dict[str, Share]:
        """Say of each of a rank's parameters where it lives."""
        return {name: self._share(part.shared.get(name, (layer_of(name),))) for name in part.named_parameters()}

    def all_shares(self, part: Part) -> tuple[Share, ...]:
        """Say where any of the model's parameters live, of this rank or not; the same on all ranks."""
        layers = (*((first,) for first, _ in self.cuts), *part.shared.values())
        return tuple(map(self._share, layers))

    def owner_of(self, name: str) -> int:
        """Give the rank that speaks for a parameter or buffer: the one that has its layer on the first route."""
        return self.schedule.routes[0][self._stage_of(layer_of(name))]

    def _share(self, layers: Iterable[int]) -> Share:
        return share_of(layers, self.cuts, self.schedule.routes, replicas=self.num_replicas)

    def _stage_of(self, layer: int) -> int:
        return next(stage for stage, (first, end) in enumerate(self.cuts) if first <= layer < end)


def layout_of(plan: Plan) -> Layout:
    """Give a plan's layout."""
    return Layout(schedule=schedule_of(plan), cuts=plan.cuts, num_replicas=plan.parallelism.data)
