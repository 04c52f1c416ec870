"""A border as bytes: a line of JSON that names the tensors, then their memory, one after the other."""

import json
import socket
from collections.abc import Mapping

import torch

from pipelinejob_trainer.recovery.history import Border

_MAX_HEAD_BYTES = 1 << 28
_DTYPES = {str(each): each for each in vars(torch).values() if isinstance(each, torch.dtype)}


def head_of(border: Border) -> bytes:
    """Return what `body_of` means, as JSON."""
    tensors = [(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in border.tensors.items()]
    facts = {"step": border.step, "loss": border.loss, "samples": border.samples, "tensors": tensors}
    return json.dumps(facts).encode()


def parts_of(border: Border) -> list[torch.Tensor]:
    """Return the tensors' memory, in the head's order, as bytes; nothing is copied."""
    return [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in border.tensors.values()]


def empty_border(head: bytes) -> Border:
    """Return a border of a head, whose tensors are still to be filled (`parts_of`)."""
    facts = json.loads(head)
    tensors: Mapping[str, torch.Tensor] = {
        name: torch.empty(shape, dtype=_DTYPES[dtype]) for name, dtype, shape in facts["tensors"]
    }
    return Border(step=facts["step"], loss=facts["loss"], samples=facts["samples"], tensors=tensors)


def send(connection: socket.socket, border: Border) -> None:
    """Send a border.

    Raises OSError.
    """
    head = head_of(border)
    connection.sendall(len(head).to_bytes(8, "big") + head)
    for part in parts_of(border):
        if part.numel():
            connection.sendall(_memory(part))


def receive(connection: socket.socket) -> Border | None:
    """Receive a border; None if the other side has closed.

    Raises OSError, ValueError for what is no border.
    """
    prefix = bytearray(8)
    if not _fill(connection, memoryview(prefix)):
        return None
    size = int.from_bytes(prefix, "big")
    if size > _MAX_HEAD_BYTES:
        raise ValueError(f"a head of {size} bytes is no border's")
    head = bytearray(size)
    if not _fill(connection, memoryview(head)):
        return None
    border = empty_border(bytes(head))
    is_whole = all(_fill(connection, _memory(part)) for part in parts_of(border) if part.numel())
    return border if is_whole else None


def _memory(part: torch.Tensor) -> memoryview:
    return part.numpy().data


def _fill(connection: socket.socket, buffer: memoryview) -> bool:
    while buffer:
        count = connection.recv_into(buffer)
        if count == 0:
            return False
        buffer = buffer[count:]
    return True
