"""What forward passes carry on: the first copy's counts, everywhere; a resumed run has it as one that never stopped."""

from pathlib import Path

import pytest
import torch

from layers.carrying_models import KINDS
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Data, Evaluation, Model, ScheduleName, ScheduleSpec
from pipelinejob_trainer.runtime.rank import build_rank
from pipelinejob_trainer.training.checks.untrained_state import UntrainedState
from support.training.gangs import plan
from support.training.loops import Run, resume, train, train_plainly

CPU = torch.device("cpu")


SHARED = ("SharedBufferChanged", "layer 1: buffer layers.1.mean was changed by a forward pass, but")


def job(
    function: str,
    *,
    layers: tuple[int, ...],
    text: Path,
    kind: str | None = None,
    name: ScheduleName = ScheduleName.ONE_F_ONE_B,
    ranks: int | None = None,
    replicas: int = 1,
) -> Plan:
    arguments = {} if kind is None else {"kind": kind}
    return plan(
        *layers,
        ranks=ranks,
        replicas=replicas,
        model=Model(entrypoint=f"layers.carrying_models:{function}", num_layers=sum(layers), arguments=arguments),
        data=Data(paths=(str(text),), sequence_length=16),
        schedule=ScheduleSpec(name=name, micro_batches=4, micro_batch_size=2),
        training={"steps": 6, "clip_norm": 0},
        checkpoint={"interval_steps": 3, "keep": 3},
        evaluation=Evaluation(interval_steps=3, batches=1),
    )


def assert_resumed_as_if_never_stopped(whole: Run, resumed: Run) -> None:
    assert whole.refused is resumed.refused is None
    assert resumed.losses == whole.losses[3:]
    assert resumed.kept[6].keys() == whole.kept[6].keys()
    assert all(torch.equal(tensor, whole.kept[6][name]) for name, tensor in resumed.kept[6].items())


LAYOUTS = {
    "replicas": {"layers": (4,), "replicas": 2},
    "stages": {"layers": (2, 2)},
    "two directions": {"layers": (2, 2), "name": ScheduleName.DUALPIPE},
    "V": {"layers": (1, 1, 1, 1), "name": ScheduleName.DUALPIPE_V, "ranks": 2},
    "asynchronous replicas": {"layers": (4,), "name": ScheduleName.PIPEDREAM, "replicas": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, text: Path, layout: str) -> None:
    plans = [job("layers", text=text, kind=kind, **LAYOUTS[layout]) for kind in KINDS]
    whole = train(*plans, folder=tmp_path)
    resumed = resume(*plans, step=3, folder=tmp_path)

    for one, other in zip(whole, resumed, strict=True):
        assert_resumed_as_if_never_stopped(one, other)


def test_one_replica_carries_on_as_plain_torch_does(tmp_path: Path, text: Path) -> None:
    plans = [job("layers", layers=(2, 2), text=text, kind=kind) for kind in KINDS]

    for wanted, run in zip(plans, train(*plans, folder=tmp_path), strict=True):
        losses, plain = train_plainly(wanted)
        kept = run.kept[6]
        assert run.losses == pytest.approx(losses, rel=1e-6)
        for name, buffer in plain.named_buffers():
            torch.testing.assert_close(kept[f"buffer/layers.{name}"], buffer, rtol=1e-5, atol=1e-6)


def test_the_first_replicas_copy_counts_and_the_others_take_it_over(tmp_path: Path, text: Path) -> None:
    whole, alone = (job("layers", layers=(4,), text=text, kind="InPlace", replicas=replicas) for replicas in (2, 1))
    (run,) = train(whole, folder=tmp_path / "whole")
    (other,) = train(alone, folder=tmp_path / "alone")

    assert run.kept[6]["buffer/layers.1.count"] == other.kept[6]["buffer/layers.1.count"] == 24  # 6 steps of 4


def test_what_nothing_trains_is_one_in_all_weight_versions(tmp_path: Path, text: Path) -> None:
    wanted = job("layers", layers=(2, 2), text=text, kind="Counting", name=ScheduleName.PIPEDREAM)
    (run,) = train(wanted, folder=tmp_path)

    counts = [run.kept[6][f"parameter/layers.{layer}.count"].item() for layer in (1, 2)]
    assert counts == [24, 24]  # 6 steps of 4 passes


@pytest.mark.parametrize("kind", ["InPlace", "Normed"])
def test_a_module_that_stands_twice_on_one_stage_carries_on_as_plain_torch_does(
    tmp_path: Path, text: Path, kind: str
) -> None:
    wanted = job("twice_the_same", layers=(4,), text=text, kind=kind)
    (run,) = train(wanted, folder=tmp_path)

    assert run.losses == pytest.approx(train_plainly(wanted)[0], rel=1e-6)


REFUSED = {
    "on two stages": ({"function": "twice_the_same", "kind": "InPlace", "layers": (2, 2)}, SHARED),
    "through .data": ({"function": "twice_the_same", "kind": "ThroughData", "layers": (2, 2)}, SHARED),
    "registered later": (
        {"function": "twice_the_same", "kind": "FirstMean", "layers": (2, 2)},
        ("SharedBufferChanged", "buffer layers.1.first was changed by a forward pass, but stands on several stages"),
    ),
    "by functions": ({"function": "by_functions_with_one_mean", "layers": (4,)}, SHARED),
    "by functions, on two stages": ({"function": "by_functions_with_one_mean", "layers": (2, 2)}, SHARED),
    "one of two slots": (
        {"function": "one_wrong", "kind": "TwoSlots", "layers": (3,)},
        (
            "SharedBufferReplaced",
            "layer 1: buffer layers.1.mean stands in several places, of which a forward pass gave",
        ),
    ),
    "another shape": (
        {"function": "one_wrong", "kind": "Reshaped", "layers": (3,)},
        ("BufferReshaped", "layer 1: buffer layers.1.mean was made as (8,) float32 and is (1, 8) float32 after a"),
    ),
    "another parameter": (
        {"function": "one_wrong", "kind": "Replaced", "layers": (3,)},
        ("ParameterReplaced", "layer 1: parameter layers.1.linear.bias was made, replaced or taken away by"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_change_that_others_would_not_have_is_refused_before_anything_is_updated(
    tmp_path: Path, text: Path, case: str
) -> None:
    options, (reason, sentence) = REFUSED[case]
    (run,) = train(job(text=text, **options), folder=tmp_path)

    assert run.refused is not None
    assert run.refused[0] == reason
    assert sentence in run.refused[1]
    assert run.losses == []


def test_where_no_pass_changes_anything_nothing_is_told_or_spread() -> None:
    rank = build_rank(plan(4, replicas=2), index=0, replica=0, device=CPU)
    carried = UntrainedState(rank, lambda *_: pytest.fail("nothing is summed up"))
    carried.begin()

    assert carried.find_changes(thoroughly=True) == 0
    assert not carried.is_spread
    assert carried.extra_buffers() == {}
