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
from pipelinejob_trainer.models.tensor_parallel import Slice, Slices, closing, entered, looked_up, own_numbers

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
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded: torch.Tensor = self.dropout(
            looked_up(self.token, tokens, self.tensor_group) + self.position(positions)
        )
        return embedded


class Block(BuiltInLayer):
    """Causal self-attention and a feed-forward layer, each added to the residual stream."""

    tensor_group: TensorGroup = ALONE

    def __init__(self, model: GptModel) -> None:
        super().__init__()
        hidden = model.hidden_size
        feed_forward = model.feed_forward_size or 4 * hidden
        self.head_size = hidden // model.num_heads
        self.attention_norm = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.feed_forward_in = nn.Linear(hidden, feed_forward)
        self.feed_forward_out = nn.Linear(feed_forward, hidden)
        self.dropout = nn.Dropout(model.dropout)
        # Each block adds to the residual stream twice; without the root its variance would grow with depth.
        residual_deviation = _INITIAL_DEVIATION / (2 * model.num_layers) ** 0.5
        _initialise(self.qkv, _INITIAL_DEVIATION)
        _initialise(self.attention_out, residual_deviation)
        _initialise(self.feed_forward_in, _INITIAL_DEVIATION)
        _initialise(self.feed_forward_out, residual_deviation)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        stream = stream + self._attend(self.attention_norm(stream))
        normed = entered(self.feed_forward_norm(stream), self.tensor_group)
        inner = functional.gelu(self.feed_forward_in(normed))
        result: torch.Tensor = stream + self.dropout(closing(self.feed_forward_out, inner, self.tensor_group))
        return result

    def _attend(self, normed_bth: torch.Tensor) -> torch.Tensor:
        group = self.tensor_group
        batch, sequence, _ = normed_bth.shape
        qkv = self.qkv(entered(normed_bth, group)).view(batch, sequence, 3, -1, self.head_size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        with own_numbers(qkv.device, group) if dropout else nullcontext():
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
        heads = mixed.transpose(1, 2).reshape(batch, sequence, -1)
        result: torch.Tensor = self.dropout(closing(self.attention_out, heads, group))
        return result


class Head(BuiltInLayer):
    """The last norm, and vectors to logits (batch, sequence, vocabulary), of this rank's part of the vocabulary."""

    tensor_group: TensorGroup = ALONE

    def __init__(self, model: GptModel) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(model.hidden_size)
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


def _initialise(linear: nn.Linear, deviation: float) -> None:
    nn.init.normal_(linear.weight, std=deviation)
    nn.init.zeros_(linear.bias)
