"""A decoder-only transformer in the style of GPT-2 (Radford et al., 2019).

The global list is embedding, blocks, head. With `tieEmbeddings` the head has no weight of its own
but the embedding's token table (Press and Wolf 2017, arXiv 1608.05859). Dropout (Srivastava et al.
2014) is where GPT-2 has it: on the embedding's output, on attention's probabilities, and on what
attention and feed-forward layer add to the stream.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from pipelinejob.spec.job import GptModel
from pipelinejob_trainer.base.user_code import BuiltInLayer

_INITIAL_DEVIATION = 0.02


class Embedding(BuiltInLayer):
    """Token ids (batch, sequence) to vectors (batch, sequence, hidden), with learned positions."""

    def __init__(self, model: GptModel, *, sequence_length: int) -> None:
        super().__init__()
        self.token = nn.Embedding(model.vocabulary_size, model.hidden_size)
        self.position = nn.Embedding(sequence_length, model.hidden_size)
        self.dropout = nn.Dropout(model.dropout)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=_INITIAL_DEVIATION)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded: torch.Tensor = self.dropout(self.token(tokens) + self.position(positions))
        return embedded


class Block(BuiltInLayer):
    """Causal self-attention and a feed-forward layer, each added to the residual stream."""

    def __init__(self, model: GptModel) -> None:
        super().__init__()
        hidden = model.hidden_size
        feed_forward = model.feed_forward_size or 4 * hidden
        self.num_heads = model.num_heads
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
        inner = functional.gelu(self.feed_forward_in(self.feed_forward_norm(stream)))
        result: torch.Tensor = stream + self.dropout(self.feed_forward_out(inner))
        return result

    def _attend(self, normed_bth: torch.Tensor) -> torch.Tensor:
        batch, sequence, hidden = normed_bth.shape
        qkv = self.qkv(normed_bth).view(batch, sequence, 3, self.num_heads, hidden // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.dropout.p if self.training else 0.0
        )
        result: torch.Tensor = self.dropout(self.attention_out(mixed.transpose(1, 2).reshape(batch, sequence, hidden)))
        return result


class Head(BuiltInLayer):
    """The last norm, and vectors to logits (batch, sequence, vocabulary)."""

    def __init__(self, model: GptModel) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(model.hidden_size)
        self.logits = nn.Linear(model.hidden_size, model.vocabulary_size, bias=False)
        nn.init.normal_(self.logits.weight, std=_INITIAL_DEVIATION)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.logits(self.norm(stream))
        return logits


def tied(model: GptModel) -> Mapping[str, str]:
    """Map the global names of tied parameters to those of the parameters that they share."""
    return {f"layers.{model.num_layers + 1}.logits.weight": "layers.0.token.weight"} if model.tie_embeddings else {}


def layer(model: GptModel, index: int, sequence_length: int) -> nn.Module:
    """Make layer `index` of the global list."""
    if index == 0:
        return Embedding(model, sequence_length=sequence_length)
    return Head(model) if index == model.num_layers + 1 else Block(model)


def _initialise(linear: nn.Linear, deviation: float) -> None:
    nn.init.normal_(linear.weight, std=deviation)
    nn.init.zeros_(linear.bias)
