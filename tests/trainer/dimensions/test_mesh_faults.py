"""Faults in a mesh of stages and tensor ranks: each ends in one clear error, and no process hangs or is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dimensions import EXPERTS, GPT, Shape, job
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.progress import ExitCode
from pipelinejob.spec.job import Data, DecoderModel, Experts, Model, Sharding
from pipelinejob_trainer.base.errors import PeerLostError
from pipelinejob_trainer.process.config import Address
from pipelinejob_trainer.training import membership
from pipelinejob_trainer.training.preparation import Preparation
from support.local.processes import free_ports, wait_until
from support.training.gangs import Gang, plan
from support.training.loops import config, ranks_of_plans
from support.training.pipelines import run_processes


def endless(text: Path, *layers: int) -> Plan:
    data = Data(paths=(str(text),), sequence_length=16)
    return plan(*layers, tensor=2, data=data, training={"steps": 1_000_000}, checkpoint={"interval_steps": 0})


def children(gang: Gang, pod: str) -> list[int]:
    pid = gang.processes[pod].pid
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_tensor_rank_that_is_killed_ends_its_stage_and_then_the_others(
    text: Path, make: Callable[[Plan], Gang]
) -> None:
    gang = make(endless(text, 2, 2))
    gang.wait_for_step(2)
    left = [pid for pod in gang.processes for pid in children(gang, pod)]

    os.kill(children(gang, "job-r0-s1")[0], signal.SIGKILL)

    assert gang.wait() == {"job-r0-s0": ExitCode.PEER_LOST, "job-r0-s1": 137}
    assert gang.termination("job-r0-s1").message == "tensor rank 0 was ended by signal 9"
    assert gang.termination("job-r0-s0").reason == "PeerLost"
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), "no rank is left behind")


def test_a_tensor_rank_that_hangs_in_a_collective_is_named(text: Path, make: Callable[[Plan], Gang]) -> None:
    """It is the one that keeps the store, by which others would notice."""
    gang = make(endless(text, 4))
    gang.wait_for_step(2)
    left = children(gang, "job-r0-s0")

    os.kill(left[0], signal.SIGSTOP)

    assert gang.wait() == {"job-r0-s0": ExitCode.FAILURE}
    words = gang.termination("job-r0-s0")
    assert words.reason == "TensorRankSilent"
    assert words.message.startswith("tensor rank 0 was silent")
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), "no rank is left behind")


SHARED = pytest.mark.parametrize(
    "shared",
    [{"sharding": Sharding.FULL}, {"expert": 2}, {"sharding": Sharding.FULL, "expert": 2}],
    ids=["layers", "experts", "both"],
)


def two_replicas(text: Path, shared: dict[str, object]) -> Plan:
    alone = plan(
        8,
        replicas=2,
        model=EXPERTS,
        data=Data(paths=(str(text),), sequence_length=16),
        training={"steps": 1_000_000},
        checkpoint={"interval_steps": 0},
    )
    return alone.model_copy(update={"parallelism": alone.parallelism.model_copy(update=shared)})


@SHARED
def test_a_replica_that_is_killed_ends_the_one_that_works_with_it(
    shared: dict[str, object], text: Path, make: Callable[[Plan], Gang]
) -> None:
    gang = make(two_replicas(text, shared))
    gang.wait_for_step(2)

    gang.signal("job-r1-s0", signal.SIGKILL)

    assert gang.wait() == {"job-r0-s0": ExitCode.PEER_LOST, "job-r1-s0": 137}
    assert gang.termination("job-r0-s0").reason == "PeerLost"


def test_a_replica_that_hangs_in_an_exchange_of_tokens_ends_the_one_that_waits_for_it(
    text: Path, make: Callable[[Plan], Gang]
) -> None:
    gang = make(two_replicas(text, {"sharding": Sharding.FULL, "expert": 2}))
    gang.wait_for_step(2)

    gang.signal("job-r1-s0", signal.SIGSTOP)

    gang.until(lambda: gang.processes["job-r0-s0"].poll() is not None, "the other ends")
    assert gang.processes["job-r0-s0"].poll() == ExitCode.PEER_LOST
    assert "stage 0 of replica 1" in gang.termination("job-r0-s0").message
    gang.signal("job-r1-s0", signal.SIGKILL)
    gang.wait()


def test_ranks_that_disagree_on_a_shape_are_refused_by_its_name(text: Path, tmp_path: Path) -> None:
    wide, narrow = (
        Model(decoder=DecoderModel(num_layers=6, hidden_size=16, num_heads=2, feed_forward_size=size))
        for size in (32, 24)
    )
    plans = [job(text, model, Shape(1, 2), steps=2) for model in (wide, narrow)]

    (reason, words), of_other = run_processes(ranks_of_plans, plans, tmp_path, world=2)

    assert (reason, words) == of_other
    assert reason == "ShapesDiffer"
    assert "tensor rank 1 of stage 0 of replica 0 has layers.1.feed_forward.gate.weight of shape (24, 16)" in words
    assert "tensor rank 0 of stage 0 of replica 0 of shape (32, 16)" in words


def test_replicas_that_disagree_on_their_experts_are_refused_by_the_tensors_name(text: Path, tmp_path: Path) -> None:
    decoder = EXPERTS.decoder
    assert decoder is not None
    of_four, of_two = (Model(decoder=decoder.model_copy(update={"experts": Experts(num=num)})) for num in (4, 2))
    plans = [job(text, model, Shape(1, 1, 2, expert=2), steps=2) for model in (of_four, of_two)]

    (reason, words), of_other = run_processes(ranks_of_plans, plans, tmp_path, world=2)

    assert (reason, words) == of_other
    assert reason == "ShapesDiffer"
    assert "stage 0 of replica 1 has layers.1.feed_forward." in words


@pytest.mark.parametrize(
    ("shape", "missing"),
    [
        (Shape(1, 2), "tensor rank 1 of stage 0 of replica 0"),
        (Shape(2, 1, 2), "stage 1 of replica 0, stage 0 of replica 1, stage 1 of replica 1"),
        (Shape(2, 2, 2), "tensor rank 1 of stage 0 of replica 0, .*, tensor rank 1 of stage 1 of replica 0 and 4 more"),
    ],
    ids=str,
)
def test_a_mesh_that_is_larger_than_the_gang_names_who_is_missing(
    shape: Shape, missing: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_RENDEZVOUS_TIMEOUT", "_OPERATION_TIMEOUT"):
        monkeypatch.setattr(membership, name, timedelta(seconds=1))
    wanted = job(text, GPT, shape)
    address = Address(host="127.0.0.1", port=free_ports(1)[0])
    place = replace(config(wanted, stage=0, replica=0, tensor=0, folder=tmp_path), rendezvous=address)
    prepared = Preparation(place, wanted)

    with pytest.raises(PeerLostError, match=f"^{missing} did not come to {address} within 1 s"):
        membership.join(place, prepared.rank)
