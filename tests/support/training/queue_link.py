"""A link between ranks that are threads of one process."""

import queue
from collections.abc import Sequence

import torch

from pipelinejob_trainer.base.errors import PeerLostError
from pipelinejob_trainer.base.nesting import Gradients, Parcel, Passed
from pipelinejob_trainer.communication.agreement import ParcelSpec
from pipelinejob_trainer.communication.messages import Message
from pipelinejob_trainer.communication.packing import Layout, TensorSpec


class QueueLink:
    """Both ends of a link inside one process, for ranks that are threads."""

    def __init__(self, *, timeout_s: float = 60.0) -> None:
        self._queue: queue.SimpleQueue[tuple[Message, Passed | Gradients] | None] = queue.SimpleQueue()
        self._timeout_s = timeout_s
        self._order: Sequence[Message] = ()
        self._early: dict[Message, Passed | Gradients] = {}
        self.bytes_total = 0

    def send(self, message: Message, value: Passed | Gradients) -> None:
        received = value.detach() if isinstance(value, torch.Tensor) else _sent(value)
        self.bytes_total += value.nbytes if isinstance(value, (torch.Tensor, Parcel)) else sum(g.nbytes for g in value)
        self._queue.put((message, received))

    def release(self, count: int) -> None:
        """Free nothing: a queue holds no sent message."""

    def flush(self) -> None:
        """Return at once: a queue takes everything."""

    def expect(self, order: Sequence[Message]) -> None:
        self._order = order

    def receive(self, position: int) -> Passed | Gradients:
        wanted = self._order[position]
        while wanted not in self._early:
            message, tensor = self._next(wanted)
            self._early[message] = tensor
        return self._early.pop(wanted)

    def close(self) -> None:
        """Tell the receiving end that nothing more will come."""
        self._queue.put(None)

    def _next(self, wanted: Message) -> tuple[Message, Passed | Gradients]:
        try:
            item = self._queue.get(timeout=self._timeout_s)
        except queue.Empty:
            item = None
        if item is None:
            raise PeerLostError(f"the rank that owes {wanted} went away")
        return item


def _sent(value: Parcel | tuple[torch.Tensor, ...]) -> Passed | Gradients:
    """Return a nesting, or gradients of one, as the other end of a link between processes has it."""
    device = torch.device("cpu")
    if isinstance(value, Parcel):
        spec = ParcelSpec.read(ParcelSpec.of(value).written())
        return spec.opened(spec.packed(value, device).clone(), is_gradient=False)
    layout = Layout.of([TensorSpec.of(gradient) for gradient in value])
    return layout.opened(layout.packed(value, device).clone())
