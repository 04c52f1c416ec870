"""Links carry messages from one rank to another: an outbox at one end, an inbox at the other.

Both ends know a step's messages and their order beforehand. So receives are posted ahead, in the sender's order, and
sends are reaped late: when a message of the other way proves that they arrived, the rest at the step's end. What
crosses a border has a shape and a type that are agreed once, by a header before its first activation; gradients are
like the activations that they belong to. So no stage needs to guess what its neighbour's layers return.
"""

import queue
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import distributed

from pipelinejob.stage_memory import AHEAD_BYTES, AHEAD_MESSAGES
from pipelinejob_trainer.errors import PeerLostError, UserError
from pipelinejob_trainer.messages import Border, Message, header_tag

# Two receives ahead keep the next transfer going while this micro-batch is worked on; more of large messages would only
# hold memory. Small ones are all received ahead: a sender whose message is awaited already sends it at once, and the
# note that says so costs no more when nobody has time to lose.
WINDOW = AHEAD_MESSAGES
WINDOW_BYTES = AHEAD_BYTES


class Outbox(Protocol):
    """The end that gives tensors away; `bytes_total` counts them."""

    bytes_total: int

    def send(self, message: Message, tensor: torch.Tensor) -> None:
        """Start to send; the tensor must not be written to afterwards. Raises PeerLostError, UserError."""

    def release(self, count: int) -> None:
        """Let go of the step's first `count` messages, which are known to have arrived. Raises PeerLostError."""

    def flush(self) -> None:
        """Wait until all of the step's messages have been sent. Raises PeerLostError."""


class Inbox(Protocol):
    """The end that takes tensors in; `bytes_total` counts them."""

    bytes_total: int

    def expect(self, order: Sequence[Message]) -> None:
        """Say which messages will come in a step, in the sender's order; the first of them are received ahead."""

    def receive(self, position: int) -> torch.Tensor:
        """Wait for one of the messages expected, named by its place in their order. Raises PeerLostError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """A rank's links, by the rank at the other end; ranks count within the pipeline."""

    outboxes: Mapping[int, Outbox] = field(default_factory=dict)
    inboxes: Mapping[int, Inbox] = field(default_factory=dict)

    @property
    def bytes_sent(self) -> int:
        return sum(outbox.bytes_total for outbox in self.outboxes.values())

    @property
    def bytes_received(self) -> int:
        return sum(inbox.bytes_total for inbox in self.inboxes.values())


class QueueLink:
    """Both ends of a link inside one process, for ranks that are threads."""

    def __init__(self, *, timeout_s: float = 60.0) -> None:
        self._queue: queue.SimpleQueue[tuple[Message, torch.Tensor] | None] = queue.SimpleQueue()
        self._timeout_s = timeout_s
        self._order: Sequence[Message] = ()
        self._early: dict[Message, torch.Tensor] = {}
        self.bytes_total = 0

    def send(self, message: Message, tensor: torch.Tensor) -> None:
        self.bytes_total += tensor.nbytes
        self._queue.put((message, tensor.detach()))

    def release(self, count: int) -> None:
        """Hold nothing, so let go of nothing."""

    def flush(self) -> None:
        """Return at once: a queue takes everything."""

    def expect(self, order: Sequence[Message]) -> None:
        self._order = order

    def receive(self, position: int) -> torch.Tensor:
        wanted = self._order[position]
        while wanted not in self._early:
            message, tensor = self._next(wanted)
            self._early[message] = tensor
        return self._early.pop(wanted)

    def close(self) -> None:
        """Tell the receiving end that nothing more will come."""
        self._queue.put(None)

    def _next(self, wanted: Message) -> tuple[Message, torch.Tensor]:
        try:
            item = self._queue.get(timeout=self._timeout_s)
        except queue.Empty:
            item = None
        if item is None:
            raise PeerLostError(f"the rank that owes {wanted} went away")
        return item


class Like(NamedTuple):
    """What a message is like."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class Shapes:
    """What crosses each border, as this rank's two ends of it have agreed.

    `rows` are the sequences of each micro-batch; the first dimension grows and shrinks with them.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = tuple(rows)
        self._likes: dict[Border, tuple[Like, ...]] = {}

    def of(self, message: Message) -> Like | None:
        """Say what a message is like; None before its border's first activation."""
        likes = self._likes.get(message.border)
        return None if likes is None else likes[message.micro_batch]

    def agree(self, message: Message, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Learn from the first activation over a border what all others will be like."""
        own_rows = self._rows[message.micro_batch]
        self._likes[message.border] = tuple(Like(_scaled(shape, rows, own_rows), dtype) for rows in self._rows)


def _scaled(shape: Sequence[int], rows: int, own_rows: int) -> torch.Size:
    return torch.Size((shape[0] * rows // own_rows, *shape[1:])) if shape else torch.Size()


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What a link between processes runs over; `peer` is the other end's global rank, `peer_in_group` that in `group`.

    Over gloo a pipeline's links share a group for each direction: who sends, who receives and the tag tell messages
    apart. NCCL knows no tags and works off a group in order, so there each way between two ranks has a group (a
    communicator and a stream) of its own, and neither way can block the other. Headers go by way of the CPU, over the
    world's group, always.
    """

    group: distributed.ProcessGroup
    peer_in_group: int
    world: distributed.ProcessGroup
    peer: int
    device: torch.device
    shapes: Shapes


class DistributedOutbox:
    """The sending end of a link between processes."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._group, self._peer, self._shapes = channel.group, channel.peer_in_group, channel.shapes
        self._headers: list[tuple[distributed.Work, torch.Tensor]] = []
        # A tensor stays referenced until it has left; its memory would be given away under the transfer.
        self._pending: deque[tuple[distributed.Work, torch.Tensor]] = deque()
        self._num_released = 0
        self.bytes_total = 0

    def send(self, message: Message, tensor: torch.Tensor) -> None:
        tensor = tensor.contiguous()
        like = self._shapes.of(message)
        if like is None:
            self._agree(message, tensor)
        elif tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise _unlike(tensor, like)
        try:
            work = self._group.send([tensor], self._peer, message.tag)
        except RuntimeError as error:
            _lost(self._channel.peer, error)
        self._pending.append((work, tensor))
        self.bytes_total += tensor.nbytes

    def release(self, count: int) -> None:
        while self._num_released < count:
            self._wait(self._pending.popleft()[0])
            self._num_released += 1

    def flush(self) -> None:
        for work, _ in (*self._headers, *self._pending):
            self._wait(work)
        self._headers.clear()
        self._pending.clear()
        self._num_released = 0

    def _agree(self, message: Message, tensor: torch.Tensor) -> None:
        channel, header = self._channel, _header(tensor)
        self._shapes.agree(message, tensor.shape, tensor.dtype)
        try:
            work = channel.world.send([header], channel.peer, header_tag(message.border))
        except RuntimeError as error:
            _lost(channel.peer, error)
        self._headers.append((work, header))

    def _wait(self, work: distributed.Work) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            _lost(self._channel.peer, error)


class DistributedInbox:
    """The receiving end of a link between processes."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._group, self._peer, self._shapes = channel.group, channel.peer_in_group, channel.shapes
        self._order: Sequence[Message] = ()
        self._posted: list[tuple[distributed.Work, torch.Tensor] | None] = []
        self._bytes_ahead = 0
        self.bytes_total = 0

    def expect(self, order: Sequence[Message]) -> None:
        self._order = order
        self._posted = []
        self._bytes_ahead = 0
        self._post(due=-1)

    def receive(self, position: int) -> torch.Tensor:
        self._post(due=position)
        posted = self._posted[position]
        assert posted is not None, f"{self._order[position]} was taken already"
        work, tensor = posted
        self._posted[position] = None
        self._bytes_ahead -= tensor.nbytes
        try:
            work.wait()
        except RuntimeError as error:
            _lost(self._channel.peer, error)
        self.bytes_total += tensor.nbytes
        return tensor

    def _post(self, *, due: int) -> None:
        """Post receives up to a window after the one that is due.

        A shape that is not agreed yet is waited for where that receive is due, and not ahead: the rank that would agree
        it may be waiting for this one.
        """
        order, posted = self._order, self._posted
        while len(posted) < len(order):
            message = order[len(posted)]
            like = self._shapes.of(message)
            if like is None:
                if len(posted) > due:
                    return
                like = self._agreed(message)
            if len(posted) > due + WINDOW and self._bytes_ahead + like.num_bytes > WINDOW_BYTES:
                return
            posted.append(self._started(message, like))

    def _started(self, message: Message, like: Like) -> tuple[distributed.Work, torch.Tensor]:
        tensor = torch.empty(like.shape, dtype=like.dtype, device=self._channel.device)
        self._bytes_ahead += like.num_bytes
        try:
            return self._group.recv([tensor], self._peer, message.tag), tensor
        except RuntimeError as error:
            _lost(self._channel.peer, error)

    def _agreed(self, message: Message) -> Like:
        channel = self._channel
        header = torch.zeros(_HEADER_LENGTH, dtype=torch.int64)
        try:
            channel.world.recv([header], channel.peer, header_tag(message.border)).wait()
        except RuntimeError as error:
            _lost(channel.peer, error)
        code, num_dimensions, *dimensions = header.tolist()
        self._shapes.agree(message, dimensions[:num_dimensions], _TYPES[code])
        like = self._shapes.of(message)
        assert like is not None, "it was just agreed"
        return like


_HEADER_LENGTH = 10  # type, number of dimensions, dimensions, zeros
_MAX_DIMENSIONS = _HEADER_LENGTH - 2
_TYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def _header(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype not in _TYPES or tensor.dim() > _MAX_DIMENSIONS:
        raise UserError(
            "BadModel",
            f"a stage's last layer returned {tensor.dtype} with {tensor.dim()} dimensions; between stages go"
            f" {', '.join(str(dtype).removeprefix('torch.') for dtype in _TYPES)} with at most {_MAX_DIMENSIONS}",
        )
    fields = [_TYPES.index(tensor.dtype), tensor.dim(), *tensor.shape]
    return torch.tensor(fields + [0] * (_HEADER_LENGTH - len(fields)), dtype=torch.int64)


def _unlike(tensor: torch.Tensor, like: Like) -> UserError:
    return UserError(
        "BadModel",
        f"a stage's last layer returned {tensor.dtype} {tuple(tensor.shape)} where {like.dtype} {tuple(like.shape)}"
        " follows from the micro-batch before; layers must return the same shape and type for every micro-batch, but"
        " for the first dimension, which grows and shrinks with the micro-batch's sequences",
    )


def _lost(peer: int, error: RuntimeError) -> NoReturn:
    # gloo's sentence, without the place in its source before it and the advice after it
    said = re.sub(r"^\[[^]]*\] ", "", str(error)).splitlines()[0].split(". ")[0]
    raise PeerLostError(f"rank {peer} went away: {said}") from error
