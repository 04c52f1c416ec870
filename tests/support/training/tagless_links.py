"""Links between ranks of one process that, like NCCL, know no tags; headers go over a world that does."""

import threading
from collections import defaultdict, deque
from typing import Any

import torch

from pipelinejob_trainer.communication.agreement import Shapes
from pipelinejob_trainer.communication.links import Channel, DistributedInbox, DistributedOutbox, Links
from pipelinejob_trainer.communication.messages import neighbours
from support.training.pipelines import CPU, Job

TIMEOUT_S = 30


class Line:
    """One way between two ranks that, like NCCL, knows no tags: what is sent first fills what is awaited first. And a
    send is done when it has been taken, not before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: deque[tuple[torch.Tensor, threading.Event]] = deque()
        self._awaited: deque[tuple[torch.Tensor, threading.Event]] = deque()

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any:
        return self._join(self._sent, tensors[0])

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any:
        return self._join(self._awaited, tensors[0])

    def _join(self, queue: deque[tuple[torch.Tensor, threading.Event]], tensor: torch.Tensor) -> Any:
        done = threading.Event()
        with self._lock:
            queue.append((tensor, done))
            while self._sent and self._awaited:
                (source, is_sent), (target, is_taken) = self._sent.popleft(), self._awaited.popleft()
                assert source.shape == target.shape, "a message came where another one was awaited"
                target.copy_(source)
                is_sent.set()
                is_taken.set()
        return Work(done)


class Work:
    def __init__(self, done: threading.Event) -> None:
        self._done = done

    def wait(self) -> None:
        assert self._done.wait(TIMEOUT_S), "waits for ever"


class World:
    """What headers go over: it does know tags."""

    def __init__(self) -> None:
        self._lines: dict[tuple[int, int, int], Line] = defaultdict(Line)

    def seen_by(self, rank: int) -> "World.View":
        return World.View(self, rank)

    class View:
        def __init__(self, world: "World", rank: int) -> None:
            self._world = world
            self._rank = rank

        def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any:
            return self._world._lines[self._rank, peer, tag].send(tensors, peer, tag)

        def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> Any:
            return self._world._lines[peer, self._rank, tag].recv(tensors, peer, tag)


def links_without_tags(job: Job) -> list[Links]:
    """Link the ranks of a job by lines; the world that carries headers is the same for all."""
    schedule, world = job.built, World()
    lines = {(source, target): Line() for source in range(job.stages) for target in neighbours(schedule, source)}
    shapes = [Shapes(job.rows) for _ in range(job.stages)]

    def channel(line: Line, rank: int, peer: int) -> Channel:
        return Channel(
            group=line, peer_in_group=0, world=world.seen_by(rank), peer=peer, device=CPU, shapes=shapes[rank]
        )

    return [
        Links(
            outboxes={
                peer: DistributedOutbox(channel(lines[rank, peer], rank, peer)) for peer in neighbours(schedule, rank)
            },
            inboxes={
                peer: DistributedInbox(channel(lines[peer, rank], rank, peer)) for peer in neighbours(schedule, rank)
            },
        )
        for rank in range(job.stages)
    ]
