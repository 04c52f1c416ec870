"""A decoder-only transformer in the style of GPT-2 (Radford et al., 2019).

The global list is embedding, blocks, head. With `tieEmbeddings` the head has no weight of its own
but the embedding's token table (Press and Wolf 2017, arXiv 1608.05859). Dropout (Srivastava et al.
2014) is where GPT-2 has it: on the embedding's output, on attention's probabilities, and on what
attention and feed-forward layer add to the stream.
"""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional

from pipelinejob.spec.job import GptModel
from pipelinejob_trainer.base.user_code import BuiltInLayer
from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.tensor_parallel import (
    Slice,
    Slices,
    closing,
    entered,
    looked_up,
    on_stream,
    own_numbers,
)

_INITIAL_DEVIATION = 0.02


class Embedding(BuiltInLayer):
    """Token ids (batch, sequence) to vectors (batch, sequence, hidden), with learned positions."""

    tensor_group: TensorGroup = ALONE

    def __init__(self, model: GptModel, *, sequence_length: int) -> None:
        super().__init__()
        self.token = nn.Embedding(model.vocabulary_size, model.hidden_size)
        self.position = nn.Embedding(sequence_length, model.hidden_size)
        self.dropout = nn.Dropout(model.dropout)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=_INITIAL_DEVIATION)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        group = self.tensor_group
        own = group.bounds(tokens.shape[1]) if group.divides_tokens else (0, tokens.shape[1])
        positions = torch.arange(*own, device=tokens.device)
        embedded = looked_up(self.token, tokens, group) + functional.embedding(
            positions, on_stream(self.position.weight, group)
        )
        return _dropped(self.dropout, embedded, group, use=1)


class Block(BuiltInLayer):
    """Causal self-attention and a feed-forward layer, each added to the residual stream."""

    tensor_group: TensorGroup = ALONE

    def __init__(self, model: GptModel) -> None:
        super().__init__()
        hidden = model.hidden_size
        feed_forward = model.feed_forward_size or 4 * hidden
        self.head_size = hidden // model.num_heads
        self.attention_norm = StreamNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.feed_forward_norm = StreamNorm(hidden)
        self.feed_forward_in = nn.Linear(hidden, feed_forward)
        self.feed_forward_out = nn.Linear(feed_forward, hidden)
        self.dropout = nn.Dropout(model.dropout)
        # Each block adds to the residual stream twice; without the root its variance would grow
        # with depth.
        residual_deviation = _INITIAL_DEVIATION / (2 * model.num_layers) ** 0.5
        _initialise(self.qkv, _INITIAL_DEVIATION)
        _initialise(self.attention_out, residual_deviation)
        _initialise(self.feed_forward_in, _INITIAL_DEVIATION)
        _initialise(self.feed_forward_out, residual_deviation)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        stream = stream + self._attend(self.attention_norm(stream))
        normed = entered(self.feed_forward_norm(stream), self.tensor_group)
        inner = functional.gelu(self.feed_forward_in(normed))
        fed = closing(self.feed_forward_out, inner, self.tensor_group)
        return stream + _dropped(self.dropout, fed, self.tensor_group, use=2)

    def _attend(self, normed: torch.Tensor) -> torch.Tensor:
        group = self.tensor_group
        normed_bth = entered(normed, group)
        batch, sequence, _ = normed_bth.shape
        qkv = self.qkv(normed_bth).view(batch, sequence, 3, -1, self.head_size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        with own_numbers(qkv.device, group) if dropout else nullcontext():
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
        heads = mixed.transpose(1, 2).reshape(batch, sequence, -1)
        return _dropped(self.dropout, closing(self.attention_out, heads, group), group, use=1)


class StreamNorm(nn.LayerNorm):
    """A norm of the stream, of which a rank may have some tokens alone."""

    tensor_group: TensorGroup = ALONE

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        weight, bias = (on_stream(each, self.tensor_group) for each in (self.weight, self.bias))
        return functional.layer_norm(stream, self.normalized_shape, weight, bias, self.eps)


class Head(BuiltInLayer):
    """The last norm, and vectors to logits (batch, sequence, vocabulary), of this rank's part of the vocabulary."""

    tensor_group: TensorGroup = ALONE

    def __init__(self, model: GptModel) -> None:
        super().__init__()
        self.norm = StreamNorm(model.hidden_size)
        self.logits = nn.Linear(model.hidden_size, model.vocabulary_size, bias=False)
        nn.init.normal_(self.logits.weight, std=_INITIAL_DEVIATION)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.logits(entered(self.norm(stream), self.tensor_group))
        return logits


def tied(model: GptModel) -> Mapping[str, str]:
    """Map the global names of tied parameters to those of the parameters that they share."""
    return {f"layers.{model.num_layers + 1}.logits.weight": "layers.0.token.weight"} if model.tie_embeddings else {}


def layer(model: GptModel, index: int, sequence_length: int) -> nn.Module:
    """Make layer `index` of the global list."""
    if index == 0:
        return Embedding(model, sequence_length=sequence_length)
    return Head(model) if index == model.num_layers + 1 else Block(model)


def slices(model: GptModel, index: int) -> Slices:
    """Return how layer `index` is divided over a tensor group, by the parameters' names in it."""
    if index == 0:
        return {"token.weight": Slice(0)}
    if index == model.num_layers + 1:
        return {"logits.weight": Slice(0)}
    return {
        "qkv.weight": Slice(0, 3),
        "qkv.bias": Slice(0, 3),
        "attention_out.weight": Slice(1),
        "feed_forward_in.weight": Slice(0),
        "feed_forward_in.bias": Slice(0),
        "feed_forward_out.weight": Slice(1),
    }


def _dropped(dropout: nn.Dropout, stream: torch.Tensor, group: TensorGroup, *, use: int) -> torch.Tensor:
    """Drop some of the stream; of tokens that a rank has alone by numbers of its own, others for each use."""
    is_own = group.divides_tokens and dropout.training and dropout.p > 0
    with own_numbers(stream.device, group, use) if is_own else nullcontext():
        result: torch.Tensor = dropout(stream)
    return result


def _initialise(linear: nn.Linear, deviation: float) -> None:
    nn.init.normal_(linear.weight, std=deviation)
    nn.init.zeros_(linear.bias)
