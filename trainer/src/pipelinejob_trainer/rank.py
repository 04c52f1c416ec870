"""A rank of a plan, put together: its chunks as stages, its optimiser's parameters, the runtime that plays its list."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipelinejob.plan import Plan
from pipelinejob_trainer.feed import Batches
from pipelinejob_trainer.layout import Layout, layout_of
from pipelinejob_trainer.link import Links
from pipelinejob_trainer.models import Part, build_part
from pipelinejob_trainer.models.refusals import check_layer
from pipelinejob_trainer.recorder import Recorder
from pipelinejob_trainer.reduction import Reducer, SumOver, buckets
from pipelinejob_trainer.runtime import Runtime
from pipelinejob_trainer.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What one rank of a pipeline holds; `stages` are its chunks, in the order of `Schedule.held_by`."""

    plan: Plan
    layout: Layout
    index: int
    replica: int
    part: Part
    stages: tuple[Stage, ...]
    device: torch.device

    @property
    def sees_text(self) -> bool:
        """Say whether it has a first or last stage; stages between see no text, and need not be able to."""
        return any(stage.is_first or stage.is_last for stage in self.stages)

    @property
    def is_spokesman(self) -> bool:
        """Say whether it is the one that tells of the job's steps: where the first route of the first replica ends."""
        return self.replica == 0 and self.layout.schedule.routes[0][-1] == self.index

    def owns(self, name: str) -> bool:
        """Say whether it speaks for a parameter or buffer, which may live on other ranks too."""
        return self.replica == 0 and self.layout.owner_of(name) == self.index

    def runtime(
        self,
        *,
        links: Links,
        sum_over: SumOver,
        recorder: Recorder,
        batches: Batches | None,
        update: Callable[[int], None] | None = None,
    ) -> Runtime:
        """Make the runtime that plays the rank's list."""
        return Runtime(
            schedule=self.layout.schedule,
            rank=self.index,
            chunks=self.stages,
            links=links,
            recorder=recorder,
            batches=batches,
            rows=self.plan.schedule.micro_batch_sizes,
            seed=self.plan.training.seed,
            replica=self.replica,
            num_replicas=self.plan.parallelism.data,
            reducer=Reducer(buckets(self.part.named_parameters(), self.layout.shares(self.part)), sum_over),
            update=update,
        )


def put_together(plan: Plan, *, index: int, replica: int, device: torch.device) -> Rank:
    """Build a rank's layers.

    Raises UserError for layers that cannot be built, or that would be trained wrongly.
    """
    layout = layout_of(plan)
    part = build_part(plan.model, plan.data, stretches=layout.stretches(index), seed=plan.training.seed)
    for layer in part.layers:
        check_layer(layer.index, layer.module, is_split=layout.schedule.is_split)
        layer.module.float()  # masters are fp32, whatever a user's layers were made in
    last = layout.schedule.num_stages - 1
    stages = tuple(
        Stage(
            chunk,
            is_first=held.stage == 0,
            is_last=held.stage == last,
            precision=plan.training.precision,
            device=device,
            recompute=plan.stages[index].recompute,
            is_split=layout.schedule.is_split,
        )
        for held, chunk in zip(layout.schedule.held_by(index), part.chunks, strict=True)
    )
    return Rank(plan=plan, layout=layout, index=index, replica=replica, part=part, stages=stages, device=device)
