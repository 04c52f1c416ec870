"""Which layers of a model are on which ranks of a pipeline.

What is on several ranks is equal on all of them, and one of them owns it. Every rank derives all
of this from plan and schedule; nothing is sent.
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
    """A schedule's stages as stretches of layers: `cuts[stage]` is [first, end).

    Each `expert` consecutive replicas divide the experts of blocks among them.
    """

    schedule: Schedule
    cuts: Sequence[LayerRange]
    num_replicas: int = 1
    expert: int = 1

    def stretches(self, rank: int) -> tuple[LayerRange, ...]:
        """Return the layers of each of a rank's chunks, in the order of `Schedule.held_by`."""
        return tuple(self.cuts[held.stage] for held in self.schedule.held_by(rank))

    @property
    def of_ranks(self) -> tuple[tuple[LayerRange, ...], ...]:
        """The layers of each rank's chunks."""
        return tuple(self.stretches(rank) for rank in range(self.schedule.num_ranks))

    def shares(self, part: Part) -> dict[str, Share]:
        """Return where each of a rank's parameters is: its stages and ranks."""
        return {name: self._share_of(name, part) for name in part.named_parameters()}

    def _share_of(self, name: str, part: Part) -> Share:
        if part.is_divided(name, part.expert_group):
            return self._share((layer_of(name),), self._with_experts(part.expert_group.rank))
        return self._share(part.shared.get(name, (layer_of(name),)))

    def all_shares(self, part: Part) -> tuple[Share, ...]:
        """Return where all parameters of the model are, of this rank or not.

        The result is the same on all ranks.
        """
        stages = [(first,) for first, _ in self.cuts]
        of_experts = [self._with_experts(rank) for rank in range(self.expert)] if self.expert > 1 else []
        return (
            *map(self._share, (*stages, *part.shared.values())),
            *(self._share(stage, replicas) for stage in stages for replicas in of_experts),
        )

    def _with_experts(self, rank: int) -> range:
        """Return the replicas that hold the same experts as a rank of an expert group."""
        return range(rank, self.num_replicas, self.expert)

    def ranks_of(self, layer: int) -> Ranks:
        """Return the ranks that hold a layer, over all replicas."""
        return self._share((layer,)).ranks

    def spans_stages(self, layers: Iterable[int]) -> bool:
        """Return whether layers are on several stages."""
        return len(self._share(layers).stages) > 1

    def owner_of(self, name: str) -> int:
        """Return the rank that owns a tensor: the one with its layer on the first route."""
        return self.schedule.routes[0][self._stage_of(layer_of(name))]

    def _share(self, layers: Iterable[int], replicas: Iterable[int] | None = None) -> Share:
        held_by = range(self.num_replicas) if replicas is None else replicas
        return share_of(layers, self.cuts, self.schedule.routes, replicas=held_by)

    def _stage_of(self, layer: int) -> int:
        return next(stage for stage, (first, end) in enumerate(self.cuts) if first <= layer < end)


def layout_of(plan: Plan) -> Layout:
    """Return a plan's layout."""
    degrees = plan.parallelism
    return Layout(schedule=schedule_of(plan), cuts=plan.cuts, num_replicas=degrees.data, expert=degrees.expert)
