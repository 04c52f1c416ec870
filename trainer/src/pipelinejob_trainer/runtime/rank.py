"""A rank of a plan: its chunks as stages, its parameters, and the runtime that plays its list."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pipelinejob.contract.plan import Plan
from pipelinejob.planning.dimensions import in_halves
from pipelinejob.spec.job import Precision, Sharding
from pipelinejob.spec.training import Compile
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.expert_group import UNDIVIDED, ExpertGroup
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.communication.process_groups import rank_of
from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.huggingface.layers import Narrow
from pipelinejob_trainer.models.identity import layer_of
from pipelinejob_trainer.models.losses.divided_loss import divided
from pipelinejob_trainer.models.losses.loss import load_loss, token_cross_entropy
from pipelinejob_trainer.models.own.refusals import check_layer
from pipelinejob_trainer.models.part import Part, build_part
from pipelinejob_trainer.optimizers.groups import freeze
from pipelinejob_trainer.runtime.feed import Batches
from pipelinejob_trainer.runtime.gathering import Gathering, gathered
from pipelinejob_trainer.runtime.layout import Layout, layout_of
from pipelinejob_trainer.runtime.recorder import Recorder
from pipelinejob_trainer.runtime.reduction import Bucket, Reducer, SumOver, SumsOverGroups, buckets
from pipelinejob_trainer.runtime.runtime import Runtime
from pipelinejob_trainer.runtime.sharding import ShardedReducer, Shards
from pipelinejob_trainer.stage.chunk import Chunk, make_chunk
from pipelinejob_trainer.stage.compiling import prepare
from pipelinejob_trainer.stage.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What one rank of a pipeline holds.

    `stages` are its chunks, in the order of `Schedule.held_by`. Of `tensor_group`, whose ranks
    share its layers, the first counts what all of them have alike. With `shards` it updates a part
    of its parameters; with `gathering` it holds no more of them, either, but while passes need a
    layer's.
    """

    plan: Plan
    layout: Layout
    index: int
    replica: int
    part: Part
    stages: tuple[Chunk, ...]
    device: torch.device
    tensor_group: TensorGroup = ALONE
    buckets: tuple[Bucket, ...] = ()
    shards: Shards | None = None
    gathering: Gathering | None = None

    @property
    def needs_text(self) -> bool:
        """Whether it has a first or last stage; stages between need no text."""
        return any(stage.is_first or stage.is_last for stage in self.stages)

    @property
    def is_spokesman(self) -> bool:
        """Whether it reports the job's steps: where the first route of replica 0 ends."""
        is_first = self.replica == 0 and self.tensor_group.rank == 0
        return is_first and self.layout.schedule.routes[0][-1] == self.index

    def with_new_stages(self) -> "Rank":
        """Return the same rank with nothing under way: what passes left unfinished is forgotten."""
        return replace(
            self,
            stages=_stages(
                self.plan,
                self.layout,
                self.part,
                index=self.index,
                device=self.device,
                tensor_group=self.tensor_group,
                weights=self.gathering,
            ),
        )

    def is_kept_by(self, plan: Plan) -> bool:
        """Tell whether a plan, but for its replicas, leaves this rank as it is: layers, schedule, and neighbours."""
        before, after = self.plan, plan
        return (before.cuts, before.parallelism.pipeline, before.schedule.name, before.schedule_actions) == (
            after.cuts,
            after.parallelism.pipeline,
            after.schedule.name,
            after.schedule_actions,
        )

    def under(self, plan: Plan) -> "Rank":
        """Return the rank with the same layers, and all that is in them, under a plan with other replicas."""
        assert self.is_kept_by(plan), "only the number of replicas changes"
        layout = layout_of(plan)
        assert self.shards is None, "replicas that share their state are not resized in memory"
        of_rank = buckets(self.part.named_parameters(), layout.shares(self.part))
        return replace(self, plan=plan, layout=layout, buckets=of_rank).with_new_stages()

    def owns(self, name: str) -> bool:
        """Return whether it owns a parameter or buffer, or its part of one, which may be on other ranks too."""
        experts = self.part.expert_group
        first = experts.rank if self.part.is_divided(name, experts) else 0  # replica that holds it
        return self.saves(name) and self.replica == first and self.layout.owner_of(name) == self.index

    def saves(self, name: str) -> bool:
        """Return whether, of those that share its layers, it speaks for a tensor, or has a part of its own."""
        return self.tensor_group.rank == 0 or self.part.is_divided(name, self.tensor_group)

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
        if self.gathering is not None:
            assert isinstance(sum_over, SumsOverGroups), "who shards has met over process groups"
            self.gathering.meet(sum_over)
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
            reducer=self._reducer(sum_over),
            update=update,
            counts_loss=self.tensor_group.rank == 0,
            weights=self.gathering,
        )

    def _reducer(self, sum_over: SumOver) -> Reducer | ShardedReducer:
        if self.shards is None:
            return Reducer(self.buckets, sum_over)
        assert isinstance(sum_over, SumsOverGroups), "who shards has met over process groups"
        return ShardedReducer(self.buckets, self.shards, sum_over)


def holds_frozen_short(plan: Plan) -> bool:
    """Return whether frozen matrices can be held in bf16: not if a user's own code may add with them in fp32."""
    training = plan.training
    return training.lora is not None and training.precision is Precision.BF16 and plan.model.entrypoint is None


def build_rank(
    plan: Plan,
    *,
    index: int,
    replica: int,
    device: torch.device,
    tensor_group: TensorGroup = ALONE,
    expert_group: ExpertGroup = UNDIVIDED,
    narrow: Narrow | None = None,
) -> Rank:
    """Build a rank's layers, or its part of them; of a folder's model narrow ones, if asked for.

    Raises UserError for layers that cannot be built, or that would be trained wrongly.
    """
    layout = layout_of(plan)
    training = plan.training
    part = build_part(
        plan.model,
        plan.data,
        stretches=layout.stretches(index),
        seed=training.seed,
        lora=training.lora,
        narrow=narrow,
        tensor_group=tensor_group,
        expert_group=expert_group,
    )
    for layer in part.layers:
        check_layer(layer.index, layer.module, is_split=layout.schedule.is_split)
    part.settle(device)
    if training.compile is Compile.LAYERS:
        if layout.schedule.is_split:
            raise UserError("NotCompiled", f"spec.training.compile: {in_halves(plan.schedule.name)}")
        prepare(device)
    freeze(part.named_parameters(), plan.training.groups)
    if holds_frozen_short(plan):
        part.hold_frozen_short()
    of_rank, shards = _divided(plan, layout, part, rank_of(replica, index, pipeline=plan.parallelism.pipeline))
    gathering = None if shards is None else gathered(shards, part)
    return Rank(
        plan=plan,
        buckets=of_rank,
        shards=shards,
        gathering=gathering,
        layout=layout,
        index=index,
        replica=replica,
        part=part,
        stages=_stages(plan, layout, part, index=index, device=device, tensor_group=tensor_group, weights=gathering),
        device=device,
        tensor_group=tensor_group,
    )


def _divided(plan: Plan, layout: Layout, part: Part, place: int) -> tuple[tuple[Bucket, ...], Shards | None]:
    """Return what a rank reduces together, and its stretches of that where the plan shards."""
    parameters, shares = part.named_parameters(), layout.shares(part)
    sharding, pipeline = plan.parallelism.sharding, plan.parallelism.pipeline

    def place_of(name: str) -> int:
        """Return a layer's number, another for what it shares with later ones: these gather it without the rest."""
        return layer_of(name) if name not in part.shared else -1 - layer_of(name)

    of_rank = buckets(parameters, shares, place_of) if sharding is Sharding.FULL else buckets(parameters, shares)
    if sharding is Sharding.NONE:
        return of_rank, None
    names = {parameter: name for name, parameter in parameters.items()}

    def is_kept(bucket: Bucket) -> bool:
        """Return whether one rank of each pipeline needs a bucket: several need it at different times."""
        return sharding is Sharding.FULL and len({each % pipeline for each in bucket.share.ranks}) == 1

    return of_rank, Shards(of_rank, names, place, is_kept=is_kept)


def _stages(
    plan: Plan,
    layout: Layout,
    part: Part,
    *,
    index: int,
    device: torch.device,
    tensor_group: TensorGroup,
    weights: Weights | None,
) -> tuple[Chunk, ...]:
    last = layout.schedule.num_stages - 1
    has_last = any(held.stage == last for held in layout.schedule.held_by(index))
    loss = load_loss(plan.training, device) if has_last else token_cross_entropy
    if tensor_group.is_split and part.vocabulary is not None:
        loss = divided(loss, tensor_group, part.vocabulary)
    return tuple(
        make_chunk(
            chunk,
            is_first=held.stage == 0,
            is_last=held.stage == last,
            precision=plan.training.precision,
            device=device,
            recomputed=plan.stages[index].recomputed(plan.cuts[held.stage]),
            is_split=layout.schedule.is_split,
            loss=loss,
            is_asynchronous=layout.schedule.is_asynchronous,
            compiles=plan.training.compile is Compile.LAYERS,
            weights=weights,
        )
        for held, chunk in zip(layout.schedule.held_by(index), part.chunks, strict=True)
    )
