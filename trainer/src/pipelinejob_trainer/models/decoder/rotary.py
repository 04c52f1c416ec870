"""Rotary positions, and which keys a query sees.

A head of size d is d / 2 pairs, (x[i], x[i + d/2]). The token at position p has pair i turned by
the angle p * theta^(-2i/d), so that products of queries and keys depend on distances alone (Su et
al. 2021, arXiv 2104.09864). Tables of cosines and sines, and masks, are made once for all blocks.
"""

import math
from collections.abc import MutableMapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from pipelinejob.spec.job import RopeScaling, RopeScalingKind


class Waves(NamedTuple):
    """What says how quickly pairs turn."""

    theta: float
    scaling: RopeScaling | None
    head_size: int


class Turns(NamedTuple):
    """Cosines, and sines of which the first half is negative: (rows or none, length, 1, head size), fp32."""

    cosines: torch.Tensor
    sines: torch.Tensor


def rotate(heads: torch.Tensor, by: Turns) -> torch.Tensor:
    """Turn heads (rows, length, heads, head size); (a, b) becomes (a cos - b sin, b cos + a sin)."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return torch.addcmul(heads * by.cosines, swapped, by.sines)


def turns(waves: Waves, length: int, positions: torch.Tensor | None, device: torch.device) -> Turns:
    """Return what turns tokens at `positions` (rows, length), or at 0, 1, ... where None."""
    if torch.compiler.is_compiling():  # a compiled layer makes its own: what layers share is no part of a function
        places = torch.arange(length, device=device) if positions is None else positions
        return _turns(places, _frequencies(waves, device))
    if positions is None:
        table = _table(waves, 1 << (length - 1).bit_length(), device)
        return Turns(table.cosines[:length], table.sines[:length])
    known = _turns_of.setdefault(positions, {})
    if waves not in known:
        known[waves] = _turns(positions, _frequencies(waves, device))
    return known[waves]


def attention_mask(
    length: int, window: int | None, positions: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor | None:
    """Return what is added to scores, (length, length) or (rows, 1, length, length), in the arithmetic's precision.

    None where each token sees all before it. `window` counts the tokens that it sees, itself among
    them. With positions it sees its own document only; where they don't follow one another,
    another begins.
    """
    device = like.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else like.dtype
    window = None if window is None or window >= length else window
    if positions is None and window is None:
        return None
    if torch.compiler.is_compiling():  # as above
        return _mask(length, window, positions, dtype, device)
    if positions is None:
        return _shared_mask(length, window, dtype, device)
    known = _masks_of.setdefault(positions, {})
    if (window, dtype) not in known:
        known[window, dtype] = _mask(length, window, positions, dtype, device)
    return known[window, dtype]


# What was made for a micro-batch's positions goes with them.
_turns_of: MutableMapping[torch.Tensor, dict[Waves, Turns]]
_turns_of = WeakTensorKeyDictionary()
_masks_of: MutableMapping[torch.Tensor, dict[tuple[int | None, torch.dtype], torch.Tensor]]
_masks_of = WeakTensorKeyDictionary()


@lru_cache(maxsize=16)
def _table(waves: Waves, length: int, device: torch.device) -> Turns:
    return _turns(torch.arange(length, device=device), _frequencies(waves, device))


@torch.no_grad()
def _turns(positions: torch.Tensor, frequencies: torch.Tensor) -> Turns:
    angles = (positions[..., None].float() * frequencies)[..., None, :]
    cosines, sines = angles.cos(), angles.sin()
    return Turns(torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1))


def _frequencies(waves: Waves, device: torch.device) -> torch.Tensor:
    """Return each pair's angle per position, fp32."""
    exponents = torch.arange(0, waves.head_size, 2, dtype=torch.float32, device=device) / waves.head_size
    frequencies, scaling = 1.0 / waves.theta**exponents, waves.scaling
    if scaling is None:
        return frequencies
    if scaling.kind is RopeScalingKind.LINEAR:
        return frequencies / scaling.factor
    # Llama 3.1: a pair that turns often in the first training's sequences stays, one that turns
    # seldom is slowed down, between the two in part.
    num_turns = scaling.original_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((num_turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


@lru_cache(maxsize=16)
def _shared_mask(length: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return _mask(length, window, None, dtype, device)


def _mask(
    length: int, window: int | None, positions: torch.Tensor | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    sees = _sees(length, window, device)
    if positions is not None:
        sees = (sees & _same_document(positions))[:, None]
    return torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, -math.inf)


def _sees(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return (query, key): whether the one comes no earlier than the other, and within the window."""
    sees = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return sees if window is None else sees.triu(1 - window)


def _same_document(positions: torch.Tensor) -> torch.Tensor:
    """Return (rows, query, key): whether both are of one document."""
    begins = positions[:, 1:] != positions[:, :-1] + 1
    document = functional.pad(begins.cumsum(1), (1, 0))
    return document[:, :, None] == document[:, None, :]
