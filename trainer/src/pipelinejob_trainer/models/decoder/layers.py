"""A decoder-only transformer in the style of Llama, dense or a mixture of experts.

The global list is embedding, blocks, head. A block is attention, then a feed-forward layer, each
behind a norm and added to the residual stream (Touvron et al. 2023, arXiv 2302.13971):

- RMSNorm, without mean and bias (Zhang and Sennrich 2019, arXiv 1910.07467);
- rotary positions (Su et al. 2021, arXiv 2104.09864), in halves, as Llama's published weights have
  them: `rotary.py`;
- groups of queries that share keys and values (Ainslie et al. 2023, arXiv 2305.13245);
- SwiGLU (Shazeer 2020, arXiv 2002.05202);
- where asked for: biases of queries, keys and values (Qwen2, arXiv 2407.10671), norms of each
  head's queries and keys (Qwen3, arXiv 2505.09388), a sliding window (Mistral, arXiv 2310.06825),
  experts (Mixtral, arXiv 2401.04088).

What passes from layer to layer is the stream, (rows, length, hidden), alone or with `positions`,
(rows, length), where rows hold several documents: each token's place in its own; and in training
with the sum of the blocks' balancing losses so far, a scalar, where experts have one.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from pipelinejob.spec.job import DecoderModel
from pipelinejob_trainer.base.user_code import BuiltInLayer
from pipelinejob_trainer.communication.tensor_group import ALONE, TensorGroup
from pipelinejob_trainer.models.decoder.experts import MixtureOfExperts
from pipelinejob_trainer.models.decoder.norm import HeadNorm, RMSNorm
from pipelinejob_trainer.models.decoder.rotary import Waves, attention_mask, rotate, turns
from pipelinejob_trainer.models.losses.auxiliary_loss import add_to_loss
from pipelinejob_trainer.models.tensor_parallel import Slice, Slices, closing, entered, looked_up

_INITIAL_DEVIATION = 0.02

Stream = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]


class Embedding(BuiltInLayer):
    """Token ids (rows, length) to the stream."""

    tensor_group: TensorGroup = ALONE

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self.token = nn.Embedding(model.vocabulary_size, model.hidden_size)
        nn.init.normal_(self.token.weight, std=_INITIAL_DEVIATION)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> Stream:
        return _closed(looked_up(self.token, tokens, self.tensor_group), positions, None)


class Block(BuiltInLayer):
    """Attention and a feed-forward layer, each added to the residual stream."""

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(model.hidden_size, eps=model.norm_epsilon)
        self.attention = Attention(model)
        self.feed_forward_norm = RMSNorm(model.hidden_size, eps=model.norm_epsilon)
        self.feed_forward = (
            FeedForward(model)
            if model.experts is None
            else MixtureOfExperts(model.experts, hidden=model.hidden_size, inner=model.feed_forward_size)
        )
        self._initialise(model.num_layers)

    def forward(self, stream: Stream) -> Stream:
        hidden, positions, balance = _opened(stream)
        hidden = hidden + self.attention(self.attention_norm(hidden), positions)
        fed, term = self.feed_forward(self.feed_forward_norm(hidden)), None
        if isinstance(fed, tuple):  # of experts
            fed, term = fed
        if balance is not None and term is not None:
            term = balance + term
        return _closed(hidden + fed, positions, term)

    def _initialise(self, num_layers: int) -> None:
        """Draw matrices; those that end in the stream smaller, as GPT-2's: it grows with depth otherwise."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                is_last = "out" in name.split(".") or name.endswith(".down")
                nn.init.normal_(parameter, std=_INITIAL_DEVIATION / (2 * num_layers) ** (0.5 * is_last))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


class Attention(nn.Module):
    """Causal attention within documents, of heads whose keys and values groups of queries share."""

    tensor_group: TensorGroup = ALONE

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        hidden, size, epsilon = model.hidden_size, model.width_of_head, model.norm_epsilon
        queries, others = model.num_heads * size, model.key_value_heads * size
        self.head_size = size
        self.window = model.sliding_window
        self.waves = Waves(model.rope_theta, model.rope_scaling, size)
        self.query = nn.Linear(hidden, queries, bias=model.attention_bias)
        self.key = nn.Linear(hidden, others, bias=model.attention_bias)
        self.value = nn.Linear(hidden, others, bias=model.attention_bias)
        self.query_norm = HeadNorm(size, eps=epsilon) if model.head_norms else nn.Identity()
        self.key_norm = HeadNorm(size, eps=epsilon) if model.head_norms else nn.Identity()
        self.out = nn.Linear(queries, hidden, bias=False)

    def forward(self, normed: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        normed = entered(normed, self.tensor_group)
        rows, length, _ = normed.shape
        heads = rows, length, -1, self.head_size
        turned_by = turns(self.waves, length, positions, normed.device)
        query = rotate(self.query_norm(self.query(normed).view(heads)), turned_by)
        key = rotate(self.key_norm(self.key(normed).view(heads)), turned_by)
        value = self.value(normed).view(heads)
        mask = attention_mask(length, self.window, positions, value)
        mixed = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        result: torch.Tensor = closing(self.out, mixed.transpose(1, 2).reshape(rows, length, -1), self.tensor_group)
        return result


class FeedForward(nn.Module):
    """SwiGLU: one projection, through silu, gates the other."""

    tensor_group: TensorGroup = ALONE

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self.gate = nn.Linear(model.hidden_size, model.feed_forward_size, bias=False)
        self.up = nn.Linear(model.hidden_size, model.feed_forward_size, bias=False)
        self.out = nn.Linear(model.feed_forward_size, model.hidden_size, bias=False)

    def forward(self, normed: torch.Tensor) -> torch.Tensor:
        normed = entered(normed, self.tensor_group)
        inner = functional.silu(self.gate(normed)) * self.up(normed)
        result: torch.Tensor = closing(self.out, inner, self.tensor_group)
        return result


class Head(BuiltInLayer):
    """The last norm, and the stream to logits (rows, length, vocabulary), of this rank's part of the vocabulary."""

    tensor_group: TensorGroup = ALONE

    def __init__(self, model: DecoderModel) -> None:
        super().__init__()
        self.norm = RMSNorm(model.hidden_size, eps=model.norm_epsilon)
        self.logits = nn.Linear(model.hidden_size, model.vocabulary_size, bias=False)
        nn.init.normal_(self.logits.weight, std=_INITIAL_DEVIATION)

    def forward(self, stream: Stream) -> torch.Tensor:
        hidden, _, balance = _opened(stream)
        if balance is not None:
            add_to_loss(balance)
        logits: torch.Tensor = self.logits(entered(self.norm(hidden), self.tensor_group))
        return logits


def layer(model: DecoderModel, index: int, sequence_length: int) -> nn.Module:  # noqa: ARG001 # nothing is learned of positions
    """Make layer `index` of the global list."""
    if index == 0:
        return Embedding(model)
    return Head(model) if index == model.num_layers + 1 else Block(model)


def tied(model: DecoderModel) -> Mapping[str, str]:
    """Map the global names of tied parameters to those of the parameters that they share."""
    return {f"layers.{model.num_layers + 1}.logits.weight": "layers.0.token.weight"} if model.tie_embeddings else {}


def slices(model: DecoderModel, index: int) -> Slices:
    """Return how layer `index` is divided over a tensor group, by the parameters' names in it."""
    if index == 0:
        return {"token.weight": Slice(0)}
    if index == model.num_layers + 1:
        return {"logits.weight": Slice(0)}
    biases = ("bias",) if model.attention_bias else ()
    heads = {f"attention.{name}.{of}": Slice(0) for name in ("query", "key", "value") for of in ("weight", *biases)}
    inner = {
        "feed_forward.gate.weight": Slice(0),
        "feed_forward.up.weight": Slice(0),
        "feed_forward.out.weight": Slice(1),
    }
    experts = {"feed_forward.gate_up": Slice(1, 2), "feed_forward.down": Slice(2)}
    return {**heads, "attention.out.weight": Slice(1), **(inner if model.experts is None else experts)}


def expert_slices(model: DecoderModel, index: int) -> Slices:
    """Return what of layer `index` replicas divide where they divide experts: each has some of them, whole."""
    is_block = 0 < index <= model.num_layers and model.experts is not None
    return {"feed_forward.gate_up": Slice(0), "feed_forward.down": Slice(0)} if is_block else {}


def _opened(stream: Stream) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    if isinstance(stream, torch.Tensor):
        return stream, None, None
    return stream if len(stream) == 3 else (*stream, None)  # noqa: PLR2004 # with a balance


def _closed(hidden: torch.Tensor, positions: torch.Tensor | None, balance: torch.Tensor | None) -> Stream:
    if balance is not None:
        return hidden, positions, balance
    return hidden if positions is None else (hidden, positions)
