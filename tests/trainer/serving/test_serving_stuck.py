"""Stages that compute without end, and requests that end stages: both are named, and the others go on."""

import contextlib
import queue
import socket
from pathlib import Path
from typing import Any

import pytest

from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.scheduler import Limits
from pipelinejob_trainer.serving.chain import Chain
from pipelinejob_trainer.serving.meter import StuckError, longest_pass_s
from pipelinejob_trainer.serving.wire import Frame, Kind, send
from support.local.processes import wait_until
from support.serving.serving_chains import COST, HANG_S, serving, stages_of, tiny_folder
from support.serving.serving_faults import Allergic, Endless

POISON = 77


def test_a_request_that_ends_a_stage_each_time_is_given_up_and_the_others_are_answered(tmp_path: Path) -> None:
    folder, _ = tiny_folder("llama", tmp_path / "model")
    with serving(stages_of(folder, 2)) as served:
        expected = served.submit([5, 9, 33], 12)
        assert expected.done.wait(HANG_S)
    stages = stages_of(folder, 2)
    stages[1] = Allergic(stages[1], POISON)
    with serving(stages) as served:
        other, poison = served.submit([5, 9, 33], 12), served.submit([5, POISON], 12)
        assert poison.done.wait(HANG_S)
        assert other.done.wait(HANG_S)
        load = served.engine.load()

    assert "each time its chain was lost" in poison.failed
    assert (other.tokens, other.failed) == (expected.tokens, "")
    assert load.blocks_owned == 0


def test_a_first_stage_that_computes_without_end_says_so() -> None:
    endless = Endless()
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serving([endless], groups=1, longest_pass_s=0.05))
        stack.callback(endless.may_end.set)
        served.engine.check_moves()
        served.submit([1], 1)

        wait_until(lambda: served.engine.readings()[0].in_pass_s > 0.1, "it computes")
        with pytest.raises(StuckError, match="has worked on one pass for 0 s, where 0 s is the most"):
            served.engine.check_moves()


def test_a_later_stage_that_computes_without_end_is_named() -> None:
    """The stage is played: it joins, and beats as one that works on a pass all the time."""
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    chain = Chain(1, port=0, events=events)
    try:
        with socket.create_connection(("127.0.0.1", chain.port)) as stuck:
            send(stuck, Frame(Kind.HELLO, {"stage": 1, "port": 1, "cost": COST.dump(), "longest_s": 90}))
            joined = events.get(timeout=HANG_S)
            for in_pass_s in (89.0, 91.0):
                send(stuck, Frame(Kind.BEAT, {"in_pass_s": in_pass_s}))
            left = events.get(timeout=HANG_S)
            joined.connection.close()
    finally:
        chain.close()

    assert (left.stage, left.reason) == (1, "it has worked on one pass for 91 s, where 90 s is the most")


def test_how_long_a_pass_may_take_follows_from_what_it_costs() -> None:
    limits = Limits(groups=3, group_size=16, chunk_tokens=256, block=16, num_blocks=64, max_waiting=0)

    assert longest_pass_s(PassCost(fixed_s=0.01, token_s=0.001), limits) == 60.0
    assert longest_pass_s(PassCost(fixed_s=0.0, token_s=0.1), limits) == pytest.approx(20 * 25.6)
