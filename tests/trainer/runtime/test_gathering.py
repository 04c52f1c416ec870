"""Parameters that replicas share are there while passes need them: two layers at a time, with the same gradients."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dimensions import DECODER, GPT, Shape, job
from pipelinejob.contract.plan import Plan
from pipelinejob.planning.planner import counted, division_of, make_plan
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Model, PipelineJobSpec, Sharding
from pipelinejob.spec.training import Compile
from pipelinejob_trainer.communication.tensor_group import TensorGroup
from pipelinejob_trainer.data.micro_batch import Inputs
from pipelinejob_trainer.runtime.gathering import Gathering
from pipelinejob_trainer.runtime.rank import Rank, build_rank
from pipelinejob_trainer.runtime.reduction import Ranks

CPU = torch.device("cpu")


class Both:
    """Gathers among ranks that stand in this process, and notes what of a rank is there at a time."""

    def __init__(self, ranks: list[Rank]) -> None:
        shards = [rank.shards.by_bucket.values() for rank in ranks if rank.shards is not None]
        self._alike = {id(each): alike for alike in zip(*shards, strict=True) for each in alike}
        self._of_flat = {id(shard.flat): shard for of in shards for shard in of}
        self.most_bytes = 0
        self.calls = 0

    def gather(self, ranks: Ranks, whole: torch.Tensor, own: torch.Tensor) -> Both:
        del ranks, own
        alike = self._alike[id(self._of_flat[id(whole)])]
        whole.copy_(torch.cat([each.kept for each in alike if each.kept is not None]))
        present = (each.flat.untyped_storage().nbytes() for each in self._of_flat.values() if each.kept is not None)
        self.most_bytes = max(self.most_bytes, sum(present))
        self.calls += 1
        return self

    def scatter(self, ranks: Ranks, sums: torch.Tensor, given: torch.Tensor) -> Both:
        raise AssertionError

    def wait(self) -> None:
        """Have it done already."""


def played(rank: Rank, *, is_split: bool) -> dict[str, torch.Tensor]:
    """Play two micro-batches that overlap; return the gradients."""
    (stage,) = rank.stages
    tokens = torch.randint(256, (2, 2, 16), generator=torch.Generator().manual_seed(1))
    for k, each in enumerate(tokens):
        stage.forward(k, Inputs(each, None), each, seed=1)
    for k in range(2):
        (stage.backward_input if is_split else stage.backward)(k)
    for k in range(2) if is_split else ():
        stage.backward_weight(k)
    return {name: each.grad for name, each in rank.part.named_parameters().items() if each.grad is not None}


def compiling(plan: Plan, compile_: Compile) -> Plan:
    return plan.model_copy(update={"training": plan.training.model_copy(update={"compile": compile_})})


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the tracer reads it within torch
@pytest.mark.parametrize("model", [GPT, DECODER], ids=["tied", "decoder"])
@pytest.mark.parametrize("schedule", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1, "compiled"])
@pytest.mark.parametrize("recomputes", [False, True], ids=["", "again"])
def test_two_layers_are_there_at_most_and_give_the_same_gradients(
    model: Model, schedule: str, recomputes: bool, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compile_ = Compile.LAYERS if schedule == "compiled" else Compile.OFF
    name = ScheduleName.ONE_F_ONE_B if schedule == "compiled" else ScheduleName(schedule)
    whole, sharded = (
        compiling(job(text, model, Shape(1, 1, 2, sharding), name), compile_)
        for sharding in (Sharding.NONE, Sharding.FULL)
    )
    stages = tuple(each.model_copy(update={"recompute": recomputes}) for each in sharded.stages)
    sharded, whole = (each.model_copy(update={"stages": stages}) for each in (sharded, whole))
    is_split = name is ScheduleName.ZB_H1
    ranks = [build_rank(sharded, index=0, replica=replica, device=CPU) for replica in range(2)]
    exchange, gathering = Both(ranks), ranks[0].gathering
    assert isinstance(gathering, Gathering)
    gathering.meet(exchange)

    found = played(ranks[0], is_split=is_split)
    gathering.release()

    expected = played(build_rank(whole, index=0, replica=0, device=CPU), is_split=is_split)
    assert found.keys() == expected.keys() == ranks[0].part.named_parameters().keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    sizes = [sum(each.nbytes for _, each in layer.named_parameters()) for layer in ranks[0].part.layers]
    largest_two = max(one + other for one, other in pairwise(sizes))
    assert max(sizes) < exchange.most_bytes <= largest_two + 64
    assert ranks[0].shards is not None
    assert all(each.flat.untyped_storage().nbytes() == 0 for each in ranks[0].shards.by_bucket.values())
    assert exchange.calls > 3 * len(sizes)  # each pass gathers


@pytest.mark.parametrize(("schedule", "tensor"), [("1F1B", 1), ("ZB-V", 1), ("1F1B", 2)])
def test_a_rank_holds_what_is_planned(schedule: str, tensor: int) -> None:
    """A tied table on two ranks is whole on both; on one, as a V has it, it is shared."""
    spec = PipelineJobSpec.model_validate(
        {
            "model": {"gpt": {"numLayers": 6, "hiddenSize": 32, "numHeads": 2, "tieEmbeddings": True}},
            "data": {"corpus": "python-stdlib", "sequenceLength": 16},
            "parallelism": {"pipeline": 2, "data": 2, "tensor": tensor, "sharding": "full"},
            "schedule": {"name": schedule, "microBatches": 4},
            "training": {"steps": 1},
            "device": "cpu",
        }
    )
    made = make_plan(namespace="default", name="job", spec=spec)
    division = division_of(made, counted(spec))
    for stage in made.stages:
        group = TensorGroup(0, tensor)
        rank = build_rank(made, index=stage.stage, replica=1, device=CPU, tensor_group=group)
        assert rank.shards is not None
        held = rank.part.named_parameters() | rank.shards.kept
        most = max(_gathered(rank, first, end) for first, end in stage.chunks)

        assert sum(each.nbytes for each in held.values()) == pytest.approx(stage.weight_bytes, abs=64)
        assert most == pytest.approx(division.gathered_bytes(stage.stage), abs=64)


def _gathered(rank: Rank, first: int, end: int) -> int:
    """Return the bytes of the two largest neighbours among layers, of what is not always there."""
    assert rank.shards is not None
    kept = rank.shards.kept
    layers = (layer for layer in rank.part.layers if first <= layer.index < end)
    sizes = [sum(each.nbytes for name, each in layer.named_parameters() if name in kept) for layer in layers]
    return max(one + other for one, other in pairwise([0, *sizes]))
