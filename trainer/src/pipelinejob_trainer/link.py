"""Links carry activations and gradients between neighbouring stages.

Messages are tagged by micro-batch, receives are posted ahead, sends reaped late.
A link goes one way. Its two ends agree on the tensor's shape and type once: the first message is a header, and every
tensor after it is like the first. So no stage needs to guess what its neighbour's layers return.
"""

import queue
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import distributed

from pipelinejob_trainer.errors import PeerLostError, UserError

# Two receives ahead keep the next transfer going while this micro-batch is worked on; more would only hold memory.
WINDOW = 2

_HEADER_TAG = 0
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


class Sender(Protocol):
    """The end that gives tensors away; `bytes_total` counts them."""

    bytes_total: int

    def send(self, micro_batch: int, tensor: torch.Tensor) -> None:
        """Start to send; the tensor must not be written to afterwards. Raises PeerLostError."""

    def flush(self) -> None:
        """Wait until everything has been sent. Raises PeerLostError."""


class Receiver(Protocol):
    """The end that takes tensors in; `bytes_total` counts them."""

    bytes_total: int

    def expect(self, micro_batches: Sequence[int]) -> None:
        """Say which micro-batches will come in a step, in their order; the first of them are received ahead."""

    def receive(self, micro_batch: int) -> torch.Tensor:
        """Wait for a micro-batch's tensor, the next of those expected. Raises PeerLostError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """A stage's links; the first stage has none upstream, the last none downstream."""

    activations_in: Receiver | None = None
    activations_out: Sender | None = None
    gradients_in: Receiver | None = None
    gradients_out: Sender | None = None


class QueueLink:
    """Both ends of a link inside one process, for stages that are threads."""

    def __init__(self, *, timeout_s: float = 60.0) -> None:
        self._queue: queue.SimpleQueue[tuple[int, torch.Tensor] | None] = queue.SimpleQueue()
        self._timeout_s = timeout_s
        self.bytes_total = 0

    def send(self, micro_batch: int, tensor: torch.Tensor) -> None:
        self.bytes_total += tensor.nbytes
        self._queue.put((micro_batch, tensor.detach()))

    def flush(self) -> None:
        """Return at once: a queue takes everything."""

    def expect(self, micro_batches: Sequence[int]) -> None:
        """Do nothing: a queue holds what comes early."""

    def receive(self, micro_batch: int) -> torch.Tensor:
        try:
            item = self._queue.get(timeout=self._timeout_s)
        except queue.Empty:
            item = None
        if item is None:
            raise PeerLostError(f"the neighbour that owes micro-batch {micro_batch} went away")
        assert item[0] == micro_batch, f"micro-batch {item[0]} came where {micro_batch} was due"
        return item[1]

    def close(self) -> None:
        """Tell the receiving end that nothing more will come."""
        self._queue.put(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What both ends of a link between processes must agree on.

    Over gloo all links share one group: who sends, who receives and the tag tell messages apart. NCCL knows no tags and
    works off a group in order, so there each link has a group (a communicator and a stream) of its own, and neither
    direction can block the other.
    """

    group: distributed.ProcessGroup
    peer: int  # global rank
    device: torch.device


class DistributedSender:
    """The sending end of a link between processes."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._like: tuple[torch.Size, torch.dtype] | None = None
        self._pending: deque[tuple[distributed.Work, torch.Tensor]] = deque()
        self.bytes_total = 0

    def send(self, micro_batch: int, tensor: torch.Tensor) -> None:
        tensor = tensor.detach().contiguous()
        if self._like is None:
            self._like = (tensor.shape, tensor.dtype)
            self._start(_header(tensor).to(self._channel.device), _HEADER_TAG)
        _check_like(tensor, *self._like)
        self._reap()
        self._start(tensor, _tag(micro_batch))
        self.bytes_total += tensor.nbytes

    def flush(self) -> None:
        while self._pending:
            _finish(self._pending.popleft()[0], self._channel.peer)

    def _start(self, tensor: torch.Tensor, tag: int) -> None:
        channel = self._channel
        with _peer_errors(channel.peer):
            work = distributed.isend(tensor, channel.peer, group=channel.group, tag=tag)
        assert work is not None, "this rank is a member of its own link's group"
        # The tensor stays referenced until it has left; its memory would be given away under the transfer.
        self._pending.append((work, tensor))

    def _reap(self) -> None:
        while self._pending and self._pending[0][0].is_completed():
            _finish(self._pending.popleft()[0], self._channel.peer)


class DistributedReceiver:
    """The receiving end of a link between processes."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._like: tuple[torch.Size, torch.dtype] | None = None
        self._due: deque[int] = deque()
        self._posted: deque[tuple[int, distributed.Work, torch.Tensor]] = deque()
        self.bytes_total = 0

    def expect(self, micro_batches: Sequence[int]) -> None:
        self._due.extend(micro_batches)
        if self._like is not None:
            self._post_ahead()

    def receive(self, micro_batch: int) -> torch.Tensor:
        if self._like is None:
            self._like = self._agree()
        self._post_ahead()
        posted_micro_batch, work, buffer = self._posted.popleft()
        assert posted_micro_batch == micro_batch, f"micro-batch {posted_micro_batch} is due before {micro_batch}"
        self._post_ahead()
        _finish(work, self._channel.peer)
        self.bytes_total += buffer.nbytes
        return buffer

    def _agree(self) -> tuple[torch.Size, torch.dtype]:
        header = torch.zeros(_HEADER_LENGTH, dtype=torch.int64, device=self._channel.device)
        _finish(self._start(header, _HEADER_TAG), self._channel.peer)
        code, num_dimensions, *dimensions = header.tolist()
        return torch.Size(dimensions[:num_dimensions]), _TYPES[code]

    def _post_ahead(self) -> None:
        assert self._like is not None, "receives are posted once the header has come"
        shape, dtype = self._like
        while self._due and len(self._posted) < WINDOW:
            micro_batch = self._due.popleft()
            buffer = torch.empty(shape, dtype=dtype, device=self._channel.device)
            self._posted.append((micro_batch, self._start(buffer, _tag(micro_batch)), buffer))

    def _start(self, buffer: torch.Tensor, tag: int) -> distributed.Work:
        channel = self._channel
        with _peer_errors(channel.peer):
            work = distributed.irecv(buffer, channel.peer, group=channel.group, tag=tag)
        assert work is not None, "this rank is a member of its own link's group"
        return work


def _tag(micro_batch: int) -> int:
    return _HEADER_TAG + 1 + micro_batch


def _header(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype not in _TYPES or tensor.dim() > _MAX_DIMENSIONS:
        raise UserError(
            "BadModel",
            f"a stage's last layer returned {tensor.dtype} with {tensor.dim()} dimensions; between stages go"
            f" {', '.join(str(dtype).removeprefix('torch.') for dtype in _TYPES)} with at most {_MAX_DIMENSIONS}",
        )
    fields = [_TYPES.index(tensor.dtype), tensor.dim(), *tensor.shape]
    return torch.tensor(fields + [0] * (_HEADER_LENGTH - len(fields)), dtype=torch.int64)


def _check_like(tensor: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise UserError(
            "BadModel",
            f"a stage's last layer returned {tensor.dtype} {tuple(tensor.shape)} after {dtype} {tuple(shape)} before;"
            " layers must return the same shape and type for every micro-batch",
        )


def _finish(work: distributed.Work, peer: int) -> None:
    with _peer_errors(peer):
        work.wait()


@contextmanager
def _peer_errors(peer: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # gloo's sentence, without the place in its source before it and the advice after it
        said = re.sub(r"^\[[^]]*\] ", "", str(error)).splitlines()[0].split(". ")[0]
        raise PeerLostError(f"rank {peer} went away: {said}") from error
