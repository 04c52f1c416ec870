"""Replicas that divide experts: against a single process, what they hold and exchange, and what no token meets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dimensions import EXPERTS, ONE, SAVED, Shape, carried_over, difference, job
from pipelinejob.contract.plan import Plan
from pipelinejob.planning.planner import make_plan
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import PipelineJobSpec, Sharding
from pipelinejob_trainer.checkpoint.folder import CheckpointFolder
from support.training.loops import Run, train
from support.training.pipelines import run_processes
from support.training.ranks import lopsided, told

NUM_LAYERS = 6  # of what is counted
CLIPPED = 0.3  # of gradients whose norm is 0.36 to 0.44
# A group; one with halves; two that hold the same experts, and shard these apart from all else;
# two stages a rank, with layers that are computed again.
CASES = (
    (Shape(2, 1, 2, expert=2), ScheduleName.ONE_F_ONE_B),
    (Shape(2, 1, 2, expert=2), ScheduleName.ZB_H1),
    (Shape(1, 1, 4, Sharding.OPTIMIZER, expert=2), ScheduleName.ONE_F_ONE_B),
    (Shape(2, 1, 2, Sharding.OPTIMIZER, recomputed=3, expert=2), ScheduleName.ZB_V),
    (Shape(1, 1, 4, Sharding.FULL, expert=2), ScheduleName.ZB_H1),
    (Shape(2, 1, 2, Sharding.FULL, expert=2), ScheduleName.INTERLEAVED),
    (Shape(1, 2, 2, Sharding.OPTIMIZER, expert=2), ScheduleName.ZB_H1),
    (Shape(1, 2, 2, Sharding.FULL, sequence_parallel=True, expert=2), ScheduleName.ONE_F_ONE_B),
)
GROUPS, GATHERED = 2, 4  # the cases with two
INSIDE = 6  # one whose experts tensor ranks share, each of them


@pytest.fixture(scope="module")
def alone(text: Path, folder: Path) -> Run:
    (run,) = train(job(text, EXPERTS, ONE, clip_norm=CLIPPED), folder=folder / "alone")
    return run


@pytest.fixture(scope="module")
def together(text: Path, folder: Path) -> list[Run]:
    jobs = (job(text, EXPERTS, *case, clip_norm=CLIPPED) for case in CASES)
    return train(*jobs, folder=folder / "together")


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda each: f"{CASES[each][0]}-{CASES[each][1]}")
def test_replicas_that_divide_experts_train_what_a_single_process_does(
    number: int, alone: Run, together: list[Run]
) -> None:
    found = difference(together[number], alone)
    assert found.is_small, found


@pytest.mark.usefixtures("alone", "together")
@pytest.mark.parametrize(
    ("written", "shape"),
    [
        (f"together/plan-{GROUPS}", ONE),
        (f"together/plan-{GROUPS}", Shape(2, 1, 4, Sharding.OPTIMIZER, expert=4)),
        (f"together/plan-{GROUPS}", Shape(2, 2, 2, Sharding.FULL)),
        (f"together/plan-{GROUPS}", Shape(2, 1, 4, Sharding.FULL, expert=2)),
        (f"together/plan-{GATHERED}", ONE),
        (f"together/plan-{GATHERED}", Shape(1, 1, 2, Sharding.FULL, expert=2)),
        (f"together/plan-{INSIDE}", ONE),
        (f"together/plan-{GROUPS}", Shape(2, 2, 2, Sharding.FULL, expert=2)),
        (f"together/plan-{INSIDE}", Shape(1, 2, 4, Sharding.FULL, expert=2)),
        ("alone/plan-0", Shape(1, 1, 4, Sharding.OPTIMIZER, expert=2)),
        ("alone/plan-0", Shape(1, 4, 2, Sharding.OPTIMIZER, expert=2)),
    ],
    ids=lambda each: str(each).replace("together/plan-", "").replace("/plan-0", ""),
)
def test_a_checkpoint_goes_into_any_other_shape_and_back_bit_for_bit(
    written: str, shape: Shape, text: Path, folder: Path, tmp_path: Path
) -> None:
    checkpoint = CheckpointFolder(folder / written).open(SAVED)
    before = checkpoint.contents()
    after = carried_over(checkpoint.path.parent, job(text, EXPERTS, shape), tmp_path)
    assert sorted(after.names) == sorted(before.names)
    assert "second_moment/layers.1.feed_forward.gate_up" in after.names
    for name in before.names:
        assert torch.equal(after.tensor(name), before.tensor(name)), name


def even(
    text: Path,
    *,
    pipeline: int = 1,
    tensor: int = 1,
    data: int,
    sharding: Sharding = Sharding.OPTIMIZER,
    **schedule: object,
) -> Plan:
    """Return a plan whose tokens meet all experts, so that as many travel as are counted."""
    sizes = {"numLayers": NUM_LAYERS - 2, "hiddenSize": 16, "numHeads": 2, "feedForwardSize": 32}
    spec = {
        "model": {"decoder": sizes | {"experts": {"num": 2, "perToken": 2}}},
        "data": {"paths": [str(text)], "sequenceLength": 16},
        "parallelism": {"pipeline": pipeline, "tensor": tensor, "data": data, "expert": 2, "sharding": sharding},
        "schedule": {"microBatches": 4, "microBatchSize": 2} | schedule,
        "training": {"steps": 2, "preflight": False},
        "checkpoint": {"intervalSteps": 0},
        "device": "cpu",
    }
    return make_plan(namespace="team", name="job", spec=PipelineJobSpec.model_validate(spec))


def exchanged(plan: Plan, stage: int = 0) -> int:
    found = plan.stages[stage].exchanged_bytes
    assert found is not None
    return found


def test_a_rank_sends_and_holds_what_its_plan_says(text: Path, tmp_path: Path) -> None:
    split = even(text, pipeline=2, data=2, name="ZB-H1")
    once, again = (even(text, data=4, name="1F1B", recompute=each) for each in (False, True))
    # Layers that are computed again are run once before all else, to see whether they can be
    # without gradients.
    forward = exchanged(again) - exchanged(once)
    gathered = even(text, data=4, name="1F1B", sharding=Sharding.FULL)
    inside = even(text, tensor=2, data=2, name="1F1B", sharding=Sharding.NONE)
    plans = [split, again, gathered, inside]
    for of_plans in run_processes(told, plans, tmp_path, world=4):
        for plan, (stage, sent, parameters, moments) in zip(plans, of_plans, strict=True):
            planned = plan.stages[stage]
            passes = plan.schedule.micro_batches * plan.training.steps
            assert sent == exchanged(plan, stage) * passes + forward * (plan is again)
            # Stretches of what is summed together are of whole elements.
            of_elements = 4 * 2 * NUM_LAYERS  # of each layer's experts, and of all else
            if plan is gathered:
                assert parameters == pytest.approx(planned.weight_bytes, abs=of_elements)
            else:
                assert parameters == planned.parameter_bytes
            assert moments == pytest.approx(planned.optimizer_bytes or 2 * parameters, abs=2 * of_elements)


def test_a_replica_whose_experts_no_token_meets_takes_part() -> None:
    for rank, tensors in enumerate(run_processes(lopsided, world=2)):
        for expected, found in zip(tensors[::2], tensors[1::2], strict=True):
            torch.testing.assert_close(found, expected)
        assert tensors[-1].any() == (rank == 0)
