"""Several tensors as one message: side by side in one buffer of bytes.

The receiver's tensors are on the buffer's memory, but no views of it for autograd: each has a
version of its own, so that one may be changed in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch

_ALIGNMENT = 64  # bytes: of a cache line, and of what vector instructions ask for


class TensorSpec(NamedTuple):
    """The shape and type of a tensor."""

    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorSpec":
        return cls(tensor.shape, tensor.dtype)

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def fits(self, tensor: object) -> bool:
        """Return whether it is that of a tensor."""
        return isinstance(tensor, torch.Tensor) and tensor.shape == self.shape and tensor.dtype == self.dtype

    def __str__(self) -> str:
        return f"{self.dtype} {tuple(self.shape)}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each of some tensors begins in a buffer, in bytes. A buffer has at least one byte."""

    specs: tuple[TensorSpec, ...]
    offsets: tuple[int, ...]
    num_bytes: int

    @classmethod
    def of(cls, specs: Sequence[TensorSpec]) -> "Layout":
        sizes = [-(-spec.num_bytes // _ALIGNMENT) * _ALIGNMENT for spec in specs[:-1]]
        offsets = tuple(accumulate(sizes, initial=0)) if specs else ()
        return cls(tuple(specs), offsets, max(1, offsets[-1] + specs[-1].num_bytes if specs else 0))

    @torch.no_grad()
    def packed(self, tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
        """Return tensors as one buffer; a single one lends its memory if it can."""
        if len(tensors) == 1 and _is_plain(tensors[0]):
            return _at(tensors[0].untyped_storage(), torch.uint8, _first_byte(tensors[0]), (tensors[0].nbytes,), device)
        buffer = torch.empty(self.num_bytes, dtype=torch.uint8, device=device)
        for part, tensor in zip(self.opened(buffer), tensors, strict=True):
            part.copy_(tensor)
        return buffer

    def opened(self, buffer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tensors in a buffer, on its memory."""
        storage, device = buffer.untyped_storage(), buffer.device
        return tuple(
            _at(storage, spec.dtype, offset, spec.shape, device)
            for spec, offset in zip(self.specs, self.offsets, strict=True)
        )


def _at(
    storage: torch.UntypedStorage, dtype: torch.dtype, offset: int, shape: Sequence[int], device: torch.device
) -> torch.Tensor:
    """Return a tensor on some memory, from a byte on."""
    if 0 in shape:
        return torch.empty(torch.Size(shape), dtype=dtype, device=device)
    tensor = torch.empty(0, dtype=dtype, device=device)
    strides = tuple(accumulate((max(size, 1) for size in reversed(shape[1:])), lambda a, b: a * b, initial=1))[::-1]
    return tensor.set_(storage, offset // dtype.itemsize, torch.Size(shape), strides if shape else ())


def _first_byte(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.itemsize


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's memory is what it says, byte for byte."""
    return bool(tensor.numel()) and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
