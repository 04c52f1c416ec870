"""Which layers of a model are on which ranks of a pipeline.

What is on several ranks is equal on all of them, and one of them owns it. Every rank derives all of
this from plan and schedule; nothing is sent.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelinejob.contract.plan import LayerRange, Plan
from pipelinejob.planning.playing import schedule_of
from pipelinejob.schedules.actions import Schedule
from pipelinejob_trainer.models.identity import layer_of
from pipelinejob_trainer.models.part import Part
from pipelinejob_trainer.runtime.reduction import Ranks, Share, share_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A schedule's stages as stretches of layers: `cuts[stage]` is [first, end)."""

    schedule: Schedule
    cuts: Sequence[LayerRange]
    num_replicas: int = 1

    def stretches(self, rank: int) -> tuple[LayerRange, ...]:
        """Return the layers of each of a rank's chunks, in the order of `Schedule.held_by`."""
        return tuple(self.cuts[held.stage] for held in self.schedule.held_by(rank))

    def shares(self, part: Part) -> dict[str, Share]:
        """Return where each of a rank's parameters is: its stages and ranks."""
        return {name: self._share(part.shared.get(name, (layer_of(name),))) for name in part.named_parameters()}

    def all_shares(self, part: Part) -> tuple[Share, ...]:
        """Return where all parameters of the model are, of this rank or not.

        The result is the same on all ranks.
        """
        layers = (*((first,) for first, _ in self.cuts), *part.shared.values())
        return tuple(map(self._share, layers))

    def ranks_of(self, layer: int) -> Ranks:
        """Return the ranks that hold a layer, over all replicas."""
        return self._share((layer,)).ranks

    def spans_stages(self, layers: Iterable[int]) -> bool:
        """Return whether layers are on several stages."""
        return len(self._share(layers).stages) > 1

    def owner_of(self, name: str) -> int:
        """Return the rank that owns a tensor: the one with its layer on the first route."""
        return self.schedule.routes[0][self._stage_of(layer_of(name))]

    def _share(self, layers: Iterable[int]) -> Share:
        return share_of(layers, self.cuts, self.schedule.routes, replicas=self.num_replicas)

    def _stage_of(self, layer: int) -> int:
        return next(stage for stage, (first, end) in enumerate(self.cuts) if first <= layer < end)


def layout_of(plan: Plan) -> Layout:
    """Return a plan's layout."""
    return Layout(schedule=schedule_of(plan), cuts=plan.cuts, num_replicas=plan.parallelism.data)
