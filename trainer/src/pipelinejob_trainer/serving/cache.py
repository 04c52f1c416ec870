"""Keys and values of one stage's layers, in blocks, as transformers' attention asks for them.

A pool holds for each layer a row of keys and one of values for each position of each block. A pass
sees it through a view: it writes the new rows, then gathers each sequence's own into one tensor,
padded on the left, as `generate` has a batch. Who owns which block is decided by the first stage.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from pipelinejob.serving.passes import Row
from pipelinejob_trainer.base.errors import UserError


class Pool:
    """The blocks of one stage: `num_blocks` of `block` positions each, for every layer that asks.

    A layer's tensors are made when it first writes, for only it knows its heads and widths.
    """

    def __init__(self, *, num_blocks: int, block: int) -> None:
        self.num_blocks = num_blocks
        self.block = block
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all layers' tensors."""
        return sum(each.nbytes for pair in self._layers.values() for each in pair)

    def of_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values, (positions, heads, width); made if they are not there yet."""
        if layer not in self._layers:
            positions = self.num_blocks * self.block
            self._layers[layer] = tuple(  # type: ignore[assignment] # two of two
                each.new_zeros((positions, each.shape[1], each.shape[3])) for each in (keys, values)
            )
        return self._layers[layer]


class View(Cache):  # type: ignore[misc] # transformers is not read by mypy
    """The pool as one pass sees it; `rows` have equally many new tokens each.

    `mask` is (rows, positions), 1 where a row has a position and 0 on its left padding; None where
    none is padded. `positions` are those of the new tokens, (rows, new).
    """

    def __init__(self, pool: Pool, rows: Sequence[Row], *, num_layers: int, device: torch.device) -> None:
        (new,) = {len(row.tokens) for row in rows}
        lengths = np.array([row.length for row in rows], dtype=np.int64)
        longest = int(lengths.max())
        places = np.arange(longest) - (longest - lengths)[:, None]  # the position at each place; below 0: padding
        blocks = np.zeros((len(rows), max(len(row.blocks) for row in rows)), dtype=np.int64)
        for number, row in enumerate(rows):
            blocks[number, : len(row.blocks)] = row.blocks
        held = np.maximum(places, 0)
        slots = np.take_along_axis(blocks, held // pool.block, axis=1) * pool.block + held % pool.block
        is_held = places >= 0
        self.reads = torch.from_numpy(slots * is_held).to(device)
        self.all_reads = self.reads.flatten()
        self.writes = self.reads[:, -new:].flatten()
        self.mask = None if is_held.all() else torch.from_numpy(is_held.astype(np.int64)).to(device)
        self.positions = torch.from_numpy(places[:, -new:].copy()).to(device)
        super().__init__(layers=[_Layer(self, pool, layer, longest - new) for layer in range(num_layers)])


class _Layer(CacheLayerMixin):  # type: ignore[misc] # transformers is not read by mypy
    """One layer of a view; no other layer's state is kept but keys and values."""

    is_sliding = False  # all positions are kept; the model's own mask hides those out of a window

    def __init__(self, view: View, pool: Pool, layer: int, past: int) -> None:
        super().__init__()
        self._view, self._pool, self._layer, self._past = view, pool, layer, past
        self._is_written = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._is_written:
            raise UserError(
                "NotServable",
                f"spec.model.huggingFace: layer {self._layer} writes its keys twice in one pass, as models do whose"
                " layers share a cache; it can be trained, not served",
            )
        self._is_written = True
        pair = self._pool.of_layer(self._layer, key_states, value_states)
        return self._through(pair[0], key_states), self._through(pair[1], value_states)

    def _through(self, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write new (rows, heads, new, width); return all (rows, heads, positions, width)."""
        held.index_copy_(0, self._view.writes, new.transpose(1, 2).flatten(0, 1))
        found = held.index_select(0, self._view.all_reads)
        return found.view(*self._view.reads.shape, *held.shape[1:]).transpose(1, 2)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the pool does it."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._past + query_length, 0

    def get_seq_length(self) -> int:
        return self._past + (self._view.writes.numel() // len(self._view.reads) if self._is_written else 0)

    def get_max_length(self) -> int:
        return -1
