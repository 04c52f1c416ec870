"""Links carry messages from one rank to another: an outbox at one end, an inbox at the other.

Both ends know a step's messages and their order beforehand. So receives are posted ahead, in the
sender's order, and sends are completed late: when a message in the other direction proves that
they arrived, or at the step's end. What crosses a border is agreed by a header before the first
activation (`agreement`), so no stage needs to guess what its neighbour's layers return. A nesting
of tensors, and its gradients, are one message each (`packing`).
"""

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import distributed

from pipelinejob.costs.memory import AHEAD_BYTES, AHEAD_MESSAGES
from pipelinejob_trainer.base.errors import PeerLostError
from pipelinejob_trainer.base.nesting import Gradients, Passed
from pipelinejob_trainer.base.waiting import Awaiting
from pipelinejob_trainer.communication.agreement import Agreed, Shapes, headers, read_headers, spec_of, unlike
from pipelinejob_trainer.communication.messages import Message, header_tag
from pipelinejob_trainer.communication.packing import TensorSpec

# Two receives ahead keep the next transfer going while this micro-batch is worked on; more of
# large messages would only hold memory. Small ones are all received ahead: a sender whose message
# is awaited already sends it at once, and the announcement of a receive costs nothing extra when
# no rank is waiting.
WINDOW = AHEAD_MESSAGES
WINDOW_BYTES = AHEAD_BYTES


class Outbox(Protocol):
    """The sending end; `bytes_total` counts what was sent."""

    bytes_total: int

    def send(self, message: Message, value: Passed | Gradients) -> None:
        """Start to send.

        Its tensors must not be written to afterwards. Raises PeerLostError, UserError.
        """

    def release(self, count: int) -> None:
        """Free the step's first `count` messages, which are known to have arrived.

        Raises PeerLostError.
        """

    def flush(self) -> None:
        """Wait until all of the step's messages have been sent. Raises PeerLostError."""


class Inbox(Protocol):
    """The receiving end; `bytes_total` counts what was received."""

    bytes_total: int

    def expect(self, order: Sequence[Message]) -> None:
        """Set a step's messages, in the sender's order, and post the first receives."""

    def receive(self, position: int) -> Passed | Gradients:
        """Wait for one of the messages expected, named by its place in their order.

        Raises PeerLostError.
        """


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What a link between processes runs over.

    `peer` is the other end's global rank, `peer_in_group` that in `group`. Over gloo a pipeline's
    links share one group for each direction: sender, receiver and tag tell messages apart. NCCL
    has no tags and processes a group in order, so there each direction between two ranks has its
    own group (a communicator and a stream), and neither can block the other. Headers always go
    over the CPU, in the world's group.
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
        # A tensor stays referenced until it has left; its memory would be given away under the
        # transfer.
        self._pending: deque[tuple[distributed.Work, torch.Tensor]] = deque()
        self._num_released = 0
        self.bytes_total = 0

    def send(self, message: Message, value: Passed | Gradients) -> None:
        spec = self._shapes.of(message)
        if spec is None:
            spec = self._agree(message, value)
        elif not spec.fits(value):
            raise unlike(value, spec)
        if isinstance(value, torch.Tensor):
            tensor = value.contiguous().resolve_conj().resolve_neg()
        else:
            assert not isinstance(spec, TensorSpec), "it fits"
            tensor = spec.packed(value, self._channel.device)
        try:
            work = self._group.send([_as_real(tensor)], self._peer, message.tag)
        except RuntimeError as error:
            _lost(self._channel.peer, error)
        self._pending.append((work, tensor))
        self.bytes_total += tensor.nbytes

    def release(self, count: int) -> None:
        while self._num_released < count:
            self._ended(self._pending.popleft()[0])  # it has arrived, so nobody is waited for
            self._num_released += 1

    def flush(self) -> None:
        with Awaiting(self._channel.peer):
            for work, _ in (*self._headers, *self._pending):
                self._ended(work)
        self._headers.clear()
        self._pending.clear()
        self._num_released = 0

    def _agree(self, message: Message, value: Passed | Gradients) -> Agreed:
        channel, spec = self._channel, spec_of(value)
        for header in headers(spec):
            try:
                work = channel.world.send([header], channel.peer, header_tag(message.border))
            except RuntimeError as error:
                _lost(channel.peer, error)
            self._headers.append((work, header))
        self._shapes.agree(message, spec)
        return spec

    def _ended(self, work: distributed.Work) -> None:
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
        self._posted: list[_Posted | None] = []
        self._bytes_ahead = 0
        self.bytes_total = 0

    def expect(self, order: Sequence[Message]) -> None:
        self._order = order
        self._posted = []
        self._bytes_ahead = 0
        self._post(due=-1)

    def receive(self, position: int) -> Passed | Gradients:
        self._post(due=position)
        posted = self._posted[position]
        assert posted is not None, f"{self._order[position]} was taken already"
        work, tensor, spec = posted
        self._posted[position] = None
        self._bytes_ahead -= tensor.nbytes
        try:
            with Awaiting(self._channel.peer):
                work.wait()
        except RuntimeError as error:
            _lost(self._channel.peer, error)
        self.bytes_total += tensor.nbytes
        if isinstance(spec, TensorSpec):
            return tensor
        return spec.opened(tensor, is_gradient=self._order[position].is_gradient)

    def _post(self, *, due: int) -> None:
        """Post receives up to a window after the one that is due.

        A header is awaited only when its receive is due, not ahead: the rank that would send it
        may be waiting for this one.
        """
        order, posted = self._order, self._posted
        while len(posted) < len(order):
            message = order[len(posted)]
            spec = self._shapes.of(message)
            if spec is None:
                if len(posted) > due:
                    return
                spec = self._agreed(message)
            if len(posted) > due + WINDOW and self._bytes_ahead + _num_bytes(message, spec) > WINDOW_BYTES:
                return
            posted.append(self._started(message, spec))

    def _started(self, message: Message, spec: Agreed) -> "_Posted":
        if isinstance(spec, TensorSpec):
            tensor = torch.empty(spec.shape, dtype=spec.dtype, device=self._channel.device)
        else:
            tensor = torch.empty(_num_bytes(message, spec), dtype=torch.uint8, device=self._channel.device)
        self._bytes_ahead += tensor.nbytes
        try:
            return _Posted(self._group.recv([_as_real(tensor)], self._peer, message.tag), tensor, spec)
        except RuntimeError as error:
            _lost(self._channel.peer, error)

    def _agreed(self, message: Message) -> Agreed:
        channel = self._channel

        def receive(header: torch.Tensor) -> None:
            try:
                with Awaiting(channel.peer):
                    channel.world.recv([header], channel.peer, header_tag(message.border)).wait()
            except RuntimeError as error:
                _lost(channel.peer, error)

        spec = read_headers(receive)
        self._shapes.agree(message, spec)
        return spec


class _Posted(NamedTuple):
    """A receive that was started."""

    work: distributed.Work
    tensor: torch.Tensor
    spec: Agreed


def _num_bytes(message: Message, spec: Agreed) -> int:
    if isinstance(spec, TensorSpec):
        return spec.num_bytes
    return (spec.gradient if message.is_gradient else spec.activation).num_bytes


def _as_real(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a tensor that every backend can send; NCCL has no complex numbers."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _lost(peer: int, error: RuntimeError) -> NoReturn:
    # gloo's sentence, without the place in its source before it and the advice after it
    sentence = re.sub(r"^\[[^]]*\] ", "", str(error)).splitlines()[0].split(". ")[0]
    raise PeerLostError(f"rank {peer} went away: {sentence}") from error
