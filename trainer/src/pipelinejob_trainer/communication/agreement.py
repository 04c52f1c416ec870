"""What crosses each border, as both ends have agreed by a header before its first activation.

It is agreed anew for each number of sequences that a micro-batch may have, since only the layers
know which dimensions follow from it; and for evaluations, which may return other things. Gradients
are those of their activations, so they need no header.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipelinejob_trainer.base import nesting
from pipelinejob_trainer.base.errors import LayerError
from pipelinejob_trainer.base.nesting import Gradients, NestingError, Parcel, Passed, Structure
from pipelinejob_trainer.communication.messages import Border, Message
from pipelinejob_trainer.communication.packing import Layout, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ParcelSpec:
    """How a nesting, and the gradients of its leaves, are laid out in a message."""

    structure: Structure
    activation: Layout
    gradient: Layout  # of the leaves that are wanted
    is_wanted: tuple[bool, ...]
    is_shared: tuple[bool, ...]

    @classmethod
    def of(cls, parcel: Parcel) -> "ParcelSpec":
        specs = [TensorSpec.of(leaf) for leaf in parcel.leaves]
        return cls._made(parcel.structure, specs, parcel.is_wanted, parcel.is_shared)

    @classmethod
    def _made(
        cls, structure: Structure, specs: Sequence[TensorSpec], is_wanted: Sequence[bool], is_shared: Sequence[bool]
    ) -> "ParcelSpec":
        return cls(
            structure=structure,
            activation=Layout.of(specs),
            gradient=Layout.of([spec for spec, each in zip(specs, is_wanted, strict=True) if each]),
            is_wanted=tuple(is_wanted),
            is_shared=tuple(is_shared),
        )

    def fits(self, value: object) -> bool:
        """Return whether a nesting, or gradients of one, can be packed so."""
        if isinstance(value, Parcel):
            return self.difference(value) is None
        return isinstance(value, tuple) and all(map(TensorSpec.fits, self.gradient.specs, value))

    def difference(self, parcel: Parcel) -> str | None:
        """Say by path what is different of a nesting."""
        found = nesting.difference(parcel.structure, self.structure)
        if found is not None:
            return found
        for place, (spec, leaf) in enumerate(zip(self.activation.specs, parcel.leaves, strict=True)):
            if not spec.fits(leaf):
                return f"{self._path(place)} is {TensorSpec.of(leaf)} where it was {spec}"
            if parcel.is_wanted[place] and not self.is_wanted[place]:
                return f"{self._path(place)} requires a gradient where it did not"
            if parcel.is_shared[place] and not self.is_shared[place]:
                return f"{self._path(place)} uses memory of another tensor beside it where it did not"
        return None

    def packed(self, value: Parcel | tuple[torch.Tensor, ...], device: torch.device) -> torch.Tensor:
        """Return the message. Raises LayerError for a tensor on another device."""
        if isinstance(value, Parcel):
            for place, leaf in enumerate(value.leaves):
                if leaf.device != device:
                    raise LayerError(
                        "BadModel",
                        f"{self._path(place)} is on {leaf.device}, the stage on {device}; move it there, as"
                        " x.to(other.device) does",
                    )
            return self.activation.packed(value.leaves, device)
        return self.gradient.packed(value, device)

    def opened(self, buffer: torch.Tensor, *, is_gradient: bool) -> Parcel | tuple[torch.Tensor, ...]:
        """Return what is in a message."""
        if is_gradient:
            return self.gradient.opened(buffer)
        return Parcel(
            structure=self.structure,
            leaves=self.activation.opened(buffer),
            is_wanted=self.is_wanted,
            is_shared=self.is_shared,
        )

    def _path(self, place: int) -> str:
        return nesting.paths(self.structure)[place]

    def written(self) -> bytes:
        """Return it as the other end reads it. Raises NestingError."""
        leaves = [
            [str(spec.dtype).removeprefix("torch."), list(spec.shape), wanted, shared]
            for spec, wanted, shared in zip(self.activation.specs, self.is_wanted, self.is_shared, strict=True)
        ]
        return json.dumps({"structure": nesting.as_json(self.structure), "leaves": leaves}).encode()

    @classmethod
    def read(cls, text: bytes) -> "ParcelSpec":
        content: dict[str, Any] = json.loads(text)
        dtypes, shapes, is_wanted, is_shared = tuple(zip(*content["leaves"], strict=True)) or ((), (), (), ())
        specs = [
            TensorSpec(torch.Size(shape), getattr(torch, dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        return cls._made(nesting.from_json(content["structure"]), specs, is_wanted, is_shared)


Agreed = TensorSpec | ParcelSpec


class Shapes:
    """What crosses each border, as both ends have agreed.

    `rows` are the sequences of each micro-batch.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = tuple(rows)
        self._agreed: dict[Border, list[Agreed | None]] = {}

    def of(self, message: Message) -> Agreed | None:
        """Return what was agreed on a message; None before the first of as many sequences."""
        agreed = self._agreed.get(message.border)
        return None if agreed is None else agreed[message.micro_batch]

    def agree(self, message: Message, agreed: Agreed) -> None:
        """Set what a border's messages of as many sequences are."""
        of_all = self._agreed.setdefault(message.border, [None] * len(self._rows))
        for micro_batch, rows in enumerate(self._rows):
            if rows == self._rows[message.micro_batch]:
                of_all[micro_batch] = agreed


_HEADER_LENGTH = 10  # type, number of dimensions, dimensions, zeros; or _NESTED, the length of its text, zeros
_MAX_DIMENSIONS = _HEADER_LENGTH - 2
_NESTED = -1
_TYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
)


def spec_of(value: Passed | Gradients) -> Agreed:
    """Return what is to be agreed on. Raises LayerError for what no border can carry."""
    if isinstance(value, torch.Tensor):
        return _sendable(value)
    assert isinstance(value, Parcel), "gradients come after their activations"
    return ParcelSpec.of(value)


def headers(spec: Agreed) -> list[torch.Tensor]:
    """Return the messages by which the other end learns of it. Raises LayerError."""
    if isinstance(spec, TensorSpec):
        return [_numbers(_TYPES.index(spec.dtype), len(spec.shape), *spec.shape)]
    try:
        text = spec.written()
    except NestingError as error:
        raise LayerError("BadModel", str(error)) from error
    return [_numbers(_NESTED, len(text)), torch.frombuffer(bytearray(text), dtype=torch.uint8)]


def read_headers(receive: Callable[[torch.Tensor], None]) -> Agreed:
    """Return what a header says; `receive` fills a tensor with the next message."""
    header = _numbers()
    receive(header)
    first, second, *dimensions = header.tolist()
    if first != _NESTED:
        return TensorSpec(torch.Size(dimensions[:second]), _TYPES[first])
    text = torch.zeros(second, dtype=torch.uint8)
    receive(text)
    return ParcelSpec.read(bytes(text.tolist()))


def unlike(value: Passed | Gradients, spec: Agreed) -> LayerError:
    """Return the error for what is not as it was agreed."""
    return LayerError(
        "BadModel",
        f"a stage's last layer returned another nesting than for an earlier micro-batch of as many sequences:"
        f" {_difference(value, spec)}; between stages structure, shapes, types and constants must stay the same: pad"
        " what varies in length, put a number that varies into a tensor, and give an empty tensor for None",
    )


def _difference(value: Passed | Gradients, spec: Agreed) -> str:
    if isinstance(value, Parcel) and isinstance(spec, ParcelSpec):
        return spec.difference(value) or "none"
    now, before = (
        TensorSpec.of(value) if isinstance(value, torch.Tensor) else _kind(value),
        spec if isinstance(spec, TensorSpec) else spec.structure,
    )
    return f"{nesting.OUTPUT} is {now} where it was {before}"


def _kind(value: Parcel | tuple[torch.Tensor, ...]) -> str:
    return str(value.structure) if isinstance(value, Parcel) else f"{len(value)} gradients"


def _sendable(tensor: torch.Tensor) -> TensorSpec:
    if tensor.dtype not in _TYPES or tensor.dim() > _MAX_DIMENSIONS or tensor.layout is not torch.strided:
        raise LayerError(
            "BadModel",
            f"a stage's last layer returned {tensor.dtype} with {tensor.dim()} dimensions; between stages go"
            f" {', '.join(str(dtype).removeprefix('torch.') for dtype in _TYPES)} with at most {_MAX_DIMENSIONS}",
        )
    return TensorSpec.of(tensor)


def _numbers(*fields: int) -> torch.Tensor:
    return torch.tensor([*fields, *[0] * (_HEADER_LENGTH - len(fields))], dtype=torch.int64)
