"""What recovery in place is made of, part by part: the choice of a step, of buddies, the ring, the wire, and waking."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import chain

import pytest
import torch
from torch import distributed

from pipelinejob.contract.incarnation import Incarnation, Member
from pipelinejob_trainer.base.errors import PeerLostError
from pipelinejob_trainer.recovery import wire
from pipelinejob_trainer.recovery.buddies import farthest_shift
from pipelinejob_trainer.recovery.copies import Keeper, Sender
from pipelinejob_trainer.recovery.history import Border, History, Holding
from pipelinejob_trainer.recovery.leaving import Leaving, keepers, who_leaves
from pipelinejob_trainer.recovery.returning import choose_return
from pipelinejob_trainer.recovery.ring import Edge, Ring
from pipelinejob_trainer.recovery.station import Station
from pipelinejob_trainer.recovery.wake import end_all_waits
from pipelinejob_trainer.training.totals import common_number
from support.local.processes import HANG_S, wait_until


def holding(*own: int, **copies: tuple[int, ...]) -> Holding:
    return Holding(own=own, copies={int(rank[1:]): steps for rank, steps in copies.items()})


@pytest.mark.parametrize(
    ("holdings", "num_stages", "expected"),
    [
        ([holding(4, 5), holding(3, 4), holding(4, 5)], 3, (4, (0, 1, 2))),  # one was a step behind
        ([holding(4, 5), holding(), holding(4, 5, r1=(4, 5))], 3, (5, (0, 2, 2))),
        ([holding(4, 5), holding(), holding(4, 5, r1=(3, 4))], 3, (4, (0, 2, 2))),  # its last copy had not arrived
        ([holding(4, 5), holding(), holding()], 3, None),  # with its buddy
        ([holding(5), holding(), holding(5), holding(5)], 2, (5, (0, 3, 2, 3))),  # the other replica's stage
        ([holding(4, 5, r1=(4, 5)), holding(), holding(), holding()], 2, (5, (0, 0, 0, 0))),  # who joins with the lost
        ([holding(), holding()], 2, None),
        ([holding(7), holding(5)], 2, None),
    ],
)
def test_all_go_back_to_the_newest_step_of_which_every_state_is_left(holdings, num_stages, expected) -> None:
    chosen = choose_return(holdings, num_stages=num_stages)

    assert (chosen and (chosen.step, chosen.sources)) == expected


NOT_ASKED = float("inf")


@pytest.mark.parametrize(
    ("looks", "ranks"),
    [
        ([[NOT_ASKED, 50.0, NOT_ASKED]], None),  # others may be asked in a moment
        ([[NOT_ASKED, 50.0, NOT_ASKED]] * 11, {1}),
        ([[NOT_ASKED, 50.0, NOT_ASKED]] * 10 + [[NOT_ASKED, 49.0, 57.0]], None),
        ([[NOT_ASKED, 50.0, NOT_ASKED], [55.0, 49.9, 57.0]], {0, 1, 2}),
        ([[NOT_ASKED, 4.0, NOT_ASKED]], {1}),  # its grace is nearly over
    ],
)
def test_who_leaves_is_known_once_for_a_moment_no_further_rank_was_asked(looks, ranks) -> None:
    found = who_leaves(looks)

    assert (found and set(found.ranks)) == ranks


@pytest.mark.parametrize(
    ("ranks", "size", "num_stages", "buddies", "expected"),
    [
        ({1}, 3, 3, (1, 2, 0), {}),  # its buddy stays
        ({1, 2}, 3, 3, (1, 2, 0), {1: 0}),  # the buddy of 1 leaves as well, that of 2 stays
        ({0, 1}, 4, 2, (), {}),  # the other replica stays
        ({1, 3}, 4, 2, (), {1: 2, 3: 0}),  # the last stage of both replicas
    ],
)
def test_a_state_that_no_rank_has_that_stays_is_sent_to_one(ranks, size, num_stages, buddies, expected) -> None:
    leaving = Leaving(ranks=frozenset(ranks), size=size)

    assert keepers(leaving, num_stages=num_stages, buddies=buddies) == expected


@pytest.mark.parametrize(
    ("paths", "shift"),
    [
        ([()] * 4, 1),
        ([("leaf-a", "n0"), ("leaf-a", "n1"), ("leaf-b", "n2"), ("leaf-b", "n3")], 2),
        ([("leaf-a", "n0"), ("leaf-b", "n1")] * 2, 1),
        ([("leaf-a", "n0"), ("leaf-a", "n0"), ("leaf-a", "n1"), ("leaf-a", "n1")], 2),
    ],
)
def test_a_buddy_stands_in_another_part_of_the_network_where_there_is_one(paths, shift) -> None:
    assert farthest_shift(paths) == shift


def border(step: int) -> Border:
    tensors = {
        "parameter/a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "buffer/b": torch.tensor([True, False]),
        "updates/c": torch.tensor(step),
        "buffer/empty": torch.zeros(0, 3),
        "buffer/complex": torch.tensor([1 + 2j]),
    }
    return Border(step=step, loss=1 / 3, samples=7 * step, tensors=tensors)


def test_copies_arrive_bit_for_bit_and_two_generations_are_kept() -> None:
    here, there = socket.socketpair()
    history = History()
    sender, keeper = Sender(here, 1, is_over=lambda: False), Keeper(there, 0, history)

    for step in (1, 2, 3):
        sender.send(border(step))
        sender.await_arrival()

    assert history.holding() == Holding(own=(), copies={0: (2, 3)})
    kept = history.border(0, 3)
    assert (kept.step, kept.loss, kept.samples) == (3, 1 / 3, 21)
    for name, tensor in border(3).tensors.items():
        assert torch.equal(kept.tensors[name], tensor)
        assert kept.tensors[name].dtype == tensor.dtype
    keeper.close()
    sender.send(border(4))
    with pytest.raises(PeerLostError, match="rank 1, which keeps"):
        sender.await_arrival()
    sender.close()


def test_what_is_no_border_is_not_taken_for_one() -> None:
    here, there = socket.socketpair()
    here.sendall(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ValueError, match="is no border's"):
        wire.receive(there)
    here.close()
    there.close()


def ring_of_three() -> tuple[list[Ring], dict[int, list[tuple[int, str]]], list[list[Edge]]]:
    pairs = {(rank, (rank + 1) % 3): socket.socketpair() for rank in range(3)}
    heard: dict[int, list[tuple[int, str]]] = {rank: [] for rank in range(3)}
    edges = [
        [
            Edge(rank=(rank + 1) % 3, connection=pairs[rank, (rank + 1) % 3][0]),
            Edge(rank=(rank - 1) % 3, connection=pairs[(rank - 1) % 3, rank][1]),
        ]
        for rank in range(3)
    ]
    rings = [
        Ring(edges[rank], silence_s=1.0, on_lost=lambda lost, why, rank=rank: heard[rank].append((lost, why)))
        for rank in range(3)
    ]
    return rings, heard, edges


def close(edges: list[list[Edge]]) -> None:
    for edge in chain.from_iterable(edges):
        edge.connection.close()


def test_the_ring_tells_the_end_of_a_rank_from_its_silence_and_a_goodbye_from_both() -> None:
    rings, heard, edges = ring_of_three()
    for ring in rings[:2]:
        ring.start()  # rank 2 never beats
    wait_until(lambda: heard[0] and heard[1], "silence is noticed", poll_s=0.02)
    assert {lost for lost, _ in heard[0] + heard[1]} == {2}
    assert "no heartbeat for" in heard[0][0][1]

    for edge in edges[1]:
        edge.connection.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: len(heard[0]) == 2, "an end is noticed", poll_s=0.02)
    assert heard[0][1] == (1, "its connection closed: the process ended")
    for ring in rings[:2]:
        ring.close()
    close(edges)

    rings, heard, edges = ring_of_three()
    for ring in rings:
        ring.start()
    rings[1].close()
    rings[2].tell(2, "its connections broke")
    wait_until(lambda: heard[0], "news goes round", poll_s=0.02)
    assert heard[0] == [(2, "its connections broke")]
    for ring in (rings[0], rings[2]):
        ring.close()
    close(edges)


@pytest.fixture
def station() -> Iterator[Callable[..., Station]]:
    opened: list[Station] = []

    def open_(rank: int, job: str = "default/job") -> Station:
        opened.append(Station(job=job, attempt=1, rank=rank))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


def meeting(number: int, stations: list[Station], attempt: int = 1) -> Incarnation:
    members = tuple(Member(replica=0, stage=each.rank, address=f"127.0.0.1:{each.port}") for each in stations)
    return Incarnation(number=number, attempt=attempt, members=members)


def test_a_call_of_an_older_incarnation_is_heard_by_nobody(station: Callable[..., Station]) -> None:
    ranks = [station(0), station(1)]
    first, second = meeting(1, ranks), meeting(2, ranks)
    ranks[1].hear(second.model_dump_json().encode())

    for caller, incarnation in ((ranks[0], first), (station(0, job="default/other"), second)):
        with caller.call(incarnation, 1, "ring", within_s=HANG_S) as stale:
            assert stale.recv(1) == b""  # closed
    with (
        ranks[0].call(second, 1, "ring", within_s=HANG_S) as there,
        ranks[1].take_call(second, 0, "ring", within_s=HANG_S) as here,
    ):
        assert here.getpeername() == there.getsockname()
    with pytest.raises(PeerLostError, match="did not call"):
        ranks[1].take_call(first, 0, "ring", within_s=0.1)


def test_a_call_of_who_was_not_told_of_the_meeting_is_no_members(station: Callable[..., Station]) -> None:
    ranks = [station(0), station(1)]
    told = meeting(1, ranks).model_copy(update={"key": "of-the-members"})
    ranks[1].hear(told.model_dump_json().encode())

    with ranks[0].call(meeting(1, ranks), 1, "ring", within_s=HANG_S):
        with pytest.raises(PeerLostError, match="did not call"):
            ranks[1].take_call(told, 0, "ring", within_s=0.2)
        with (
            ranks[0].call(told, 1, "ring", within_s=HANG_S) as there,
            ranks[1].take_call(told, 0, "ring", within_s=HANG_S) as here,
        ):
            assert here.getpeername() == there.getsockname()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [(b"{}", "no incarnation"), (meeting(1, []).model_dump_json().encode(), "heard of incarnation 1")],
)
def test_what_is_no_newer_incarnation_is_refused(station: Callable[..., Station], body: bytes, sentence: str) -> None:
    rank = station(0)
    rank.hear(meeting(1, []).model_dump_json().encode())

    with pytest.raises(ValueError, match=sentence):
        rank.hear(body)
    with pytest.raises(ValueError, match="this process is of attempt 1"):
        rank.hear(meeting(2, [], attempt=2).model_dump_json().encode())
    with pytest.raises(PeerLostError, match="no new incarnation"):
        rank.await_newer(1, within_s=0.05)


def member(rank: int, store: str, kind: str, results: "multiprocessing.Queue[tuple[str, float]]") -> None:
    """Wait for a peer that is stopped; end the wait from another thread, and say how long that took."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=HANG_S)
    )
    distributed.all_reduce(torch.zeros(1))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    waiting = threading.Event()
    ended: list[float] = []

    def wait() -> None:
        try:
            waiting.set()
            if kind == "receive":
                distributed.recv(torch.zeros(1), 1)
            else:
                distributed.all_reduce(torch.zeros(1))
        except RuntimeError:
            ended.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    time.sleep(0.5)  # for the wait itself to begin, which nothing tells of; earlier, the test would only be easier
    assert not ended
    began = time.monotonic()
    end_all_waits()
    thread.join()
    results.put((kind, ended[0] - began))
    distributed.destroy_process_group()
    os._exit(0)


@pytest.mark.parametrize("kind", ["receive", "sum"])
def test_a_wait_for_a_stopped_rank_is_ended_from_another_thread(kind: str, tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=member, args=(rank, str(tmp_path / "store"), kind, results), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        ended, seconds = results.get(timeout=HANG_S)
    finally:
        for process in processes:
            process.kill()

    assert ended == kind
    assert seconds < HANG_S / 10  # milliseconds; without it, the group's own timeout


def at_border(number: int, stations: list[Station]) -> Incarnation:
    return meeting(number, stations).model_copy(update={"at_border": True})


def test_an_incarnation_at_a_border_is_no_reason_to_wait_until_the_border_is_reached(
    station: Callable[..., Station],
) -> None:
    ranks = [station(0), station(1)]
    ranks[0].hear(meeting(1, ranks[:1]).model_dump_json().encode())
    for each in ranks:
        each.hear(at_border(2, ranks).model_dump_json().encode())

    assert [each.next_at_border() for each in ranks] == [2, 2]
    with pytest.raises(PeerLostError, match="no new incarnation"):
        ranks[0].await_newer(1, within_s=0.05)
    with pytest.raises(PeerLostError, match="no new incarnation"):
        ranks[1].await_newer(0, within_s=0.05, joins=True)

    begun = ranks[0].at_border(2)
    ranks[0].begin_at_border(2)
    with ranks[0].call(begun, 1, "ring", within_s=HANG_S):
        joined = ranks[1].await_newer(0, within_s=HANG_S, joins=True)
    assert joined == begun
    assert [each.next_at_border() for each in ranks] == [0, 0]


def test_a_loss_before_the_border_is_followed_by_another_incarnation(station: Callable[..., Station]) -> None:
    rank = station(0)
    rank.hear(at_border(2, [rank]).model_dump_json().encode())
    with pytest.raises(ValueError, match="heard of incarnation 2"):
        rank.hear(meeting(2, [rank]).model_dump_json().encode())
    rank.hear(meeting(3, [rank]).model_dump_json().encode())

    assert rank.next_at_border() == 0
    heard = rank.await_newer(0, within_s=HANG_S)
    assert heard is not None
    assert heard.number == 3


@pytest.mark.parametrize(
    ("numbers", "expected"), [([0, 0], None), ([4, 4, 4], 4), ([4, 4, 5], None), ([0, 4], None), ([3, 4, 5], None)]
)
def test_ranks_go_over_once_all_have_heard_of_the_same(numbers, expected) -> None:
    found = common_number(sum(numbers), sum(each**2 for each in numbers), count=len(numbers))

    assert found == expected
