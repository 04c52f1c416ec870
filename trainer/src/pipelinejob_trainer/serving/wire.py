"""Frames between stages over TCP: a kind, a header in JSON, and the bytes of at most one tensor.

Sockets of our own, not gloo: a chain is left and formed again while its stages live, and a closed
socket wakes whoever waits on it at once (docs/decisions).
"""

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import orjson
import torch

from pipelinejob.serving.passes import Outcome, Pass, Row, Sampled, Sampling
from pipelinejob_trainer.base.errors import PeerLostError

_HEAD = struct.Struct("!4sBIQ")
_MAGIC = b"PJs1"
_MOST_HEADER = 64 << 20
_DTYPES = {str(each): each for each in (torch.float32, torch.bfloat16, torch.float16)}


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1  # begins a chain: who sends, and which incarnation it is
    PASS = 2
    OUTCOME = 3
    BEAT = 4  # this stage lives; what it knows of the stages before it travels on


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it is sent; `tensor` is on the CPU."""

    kind: Kind
    header: Any
    tensor: torch.Tensor | None = None


def send(connection: socket.socket, frame: Frame) -> None:
    """Send a frame whole.

    Raises PeerLostError where the other side is gone.
    """
    tensor = None if frame.tensor is None else frame.tensor.contiguous()
    about = None if tensor is None else {"dtype": str(tensor.dtype), "shape": list(tensor.shape)}
    header = orjson.dumps({"is": frame.header, "tensor": about})
    body = b"" if tensor is None else tensor.view(torch.uint8).numpy().reshape(-1).data
    try:
        connection.sendall(_HEAD.pack(_MAGIC, frame.kind, len(header), len(body)) + header)
        if len(body):
            connection.sendall(body)
    except OSError as error:
        raise PeerLostError(f"a neighbouring stage went away: {error}") from error


def receive(connection: socket.socket) -> Frame:
    """Receive a frame.

    Raises PeerLostError where the other side is gone, is silent for longer than the connection's
    timeout, or is no stage.
    """
    magic, kind, num_header, num_body = _HEAD.unpack(_read(connection, _HEAD.size))
    if magic != _MAGIC or num_header > _MOST_HEADER:
        raise PeerLostError("who connected is no stage of this version; look at what else uses the port")
    header = orjson.loads(_read(connection, num_header))
    about = header["tensor"]
    if about is None:
        return Frame(Kind(kind), header["is"])
    flat = torch.frombuffer(_read(connection, num_body), dtype=torch.uint8)
    return Frame(Kind(kind), header["is"], flat.view(_DTYPES[about["dtype"]]).reshape(about["shape"]))


def _read(connection: socket.socket, count: int) -> bytearray:
    read = bytearray(count)
    view, done = memoryview(read), 0
    while done < count:
        try:
            got = connection.recv_into(view[done:])
        except OSError as error:
            raise PeerLostError(f"a neighbouring stage went away: {error}") from error
        if not got:
            raise PeerLostError("a neighbouring stage closed its connection")
        done += got
    return read


def pass_of(header: Any) -> Pass:
    """Return the pass that a header tells of."""
    return Pass(number=header["number"], rows=tuple(map(_row_of, header["rows"])), group=header["group"])


def outcome_of(header: Any) -> Outcome:
    """Return the outcome that a header tells of."""
    return Outcome(number=header["number"], sampled=tuple(map(_sampled_of, header["sampled"])))


def _row_of(said: Any) -> Row:
    sampling = said["sampling"]
    return Row(
        sequence=said["sequence"],
        tokens=tuple(said["tokens"]),
        start=said["start"],
        blocks=tuple(said["blocks"]),
        sampling=None if sampling is None else Sampling(**sampling),
        prompt=tuple(said["prompt"]),
        generated=tuple(said["generated"]),
    )


def _sampled_of(said: Any) -> Sampled:
    return Sampled(**said | {"top": tuple((token, value) for token, value in said["top"])})
