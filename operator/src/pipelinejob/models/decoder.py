"""A decoder-only transformer by its sizes: what its layers are made of, whoever wrote the sizes down.

Its list of layers is embedding, blocks, head. What a layer costs follows from this alone:
`counts.py`.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


class Role(StrEnum):
    """What a block's matrix is for, where low-rank adapters may stand beside it."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    OUT = "out"  # of attention
    GATE = "gate"
    INTO = "into"  # a feed-forward layer
    BACK = "back"  # to the stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix of parameters that every token's vector is multiplied with.

    Of `copies` (experts) a token meets `used`. Tensor parallelism deals out `units`, as heads are,
    or whole columns or rows where unset; `is_whole` says that every GPU holds all of it.
    """

    inputs: int
    outputs: int
    has_bias: bool = False
    copies: int = 1
    used: int = 1
    units: int | None = None
    is_whole: bool = False
    role: Role | None = None

    @property
    def parameters(self) -> int:
        """Count them in all copies."""
        return self.copies * (self.inputs + self.has_bias) * self.outputs

    @property
    def active_parameters(self) -> int:
        """Count those that a token meets."""
        return self.used * (self.inputs + self.has_bias) * self.outputs

    @property
    def products(self) -> int:
        """Count a token's operations, a multiplication and an addition for each element."""
        return 2 * self.used * self.inputs * self.outputs

    def share(self, tensor: int) -> float:
        """Return the share of the GPU that holds the most, of `tensor` that divide it."""
        if self.is_whole:
            return 1.0
        units = self.units or max(self.inputs, self.outputs)
        return -(-units // tensor) / units

    @property
    def is_experts(self) -> bool:
        """Whether a token meets some of several alike."""
        return self.copies > 1

    def copies_on(self, expert: int) -> int:
        """Count the copies that each of `expert` replicas holds, which divide experts."""
        return self.copies // expert if self.is_experts else self.copies

    def held(self, tensor: int, expert: int = 1) -> float:
        """Count the parameters of that GPU; a bias that is added to the sum of all is whole on each.

        Of experts it is those of one of `expert` replicas.
        """
        bias = self.copies * self.has_bias * self.outputs
        share = self.share(tensor)
        of_all = (self.parameters - bias) * share + bias * (1.0 if self.is_last else share)
        return of_all * self.copies_on(expert) / self.copies

    @property
    def is_last(self) -> bool:
        """Whether it is divided by its inputs, so that its outputs are whole on every GPU, the stream's."""
        return self.role in {Role.OUT, Role.BACK}


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """What is added to the residual stream at once: attention, a feed-forward layer, or both side by side.

    For each token, `kept` counts the elements that its backward pass needs besides the stream
    itself, and `multiplied` those of them that matrices are multiplied with, which the gradients
    of matrices need. `vectors` are the parameters that are no matrices. Attention looks at
    `window` keys at most, and multiplies with each `score_width` elements: those of all heads'
    keys, and of their values. What tensor parallelism leaves whole is what the first matrix
    multiplies with, and beside it `whole_kept` and `whole_multiplied`.
    """

    matrices: tuple[Matrix, ...]
    vectors: int
    kept: int
    multiplied: int
    score_width: int = 0
    window: int | None = None
    whole_kept: int = 0
    whole_multiplied: int = 0

    @property
    def parameters(self) -> int:
        """Count all of them."""
        return self.vectors + sum(matrix.parameters for matrix in self.matrices)

    @property
    def active_parameters(self) -> int:
        """Count those that a token meets: of experts, the ones it is sent to."""
        return self.vectors + sum(matrix.active_parameters for matrix in self.matrices)


Block = tuple[Branch, ...]


@dataclass(frozen=True, kw_only=True, eq=False)  # who reads one keeps it, so that the same sizes are the same object
class Decoder:
    """Embedding, blocks and head.

    `width` is the residual stream's, `token_width` that of the table of tokens where it differs,
    and is projected. `positions` are learned ones. A tied head multiplies with the embedding's
    table. `has_dropout` says that what the embedding and every branch give is dropped in part.
    """

    width: int
    vocabulary: int
    token_width: int
    positions: int = 0
    embedding_vectors: int = 0
    blocks: tuple[Block, ...]
    head_vectors: int
    has_head_bias: bool = False
    is_tied: bool
    has_dropout: bool = False
    is_fused: bool = False  # queries, keys and values are one matrix
    note: str | None = None  # what was assumed of it

    @property
    def num_layers(self) -> int:
        """Count embedding, blocks and head."""
        return len(self.blocks) + 2

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Name embedding, blocks and head."""
        return ("embedding", *(f"block-{i}" for i in range(len(self.blocks))), "head")

    @cached_property
    def parameters(self) -> int:
        """Count the parameters, a tied table once."""
        return self._outside + sum(branch.parameters for block in self.blocks for branch in block)

    @cached_property
    def active_parameters(self) -> int:
        """Count those that a token meets: of experts, the ones it is sent to."""
        return self._outside + sum(branch.active_parameters for block in self.blocks for branch in block)

    @property
    def table_parameters(self) -> int:
        """Count the table of tokens."""
        return self.vocabulary * self.token_width

    @property
    def tied_parameters(self) -> int:
        """Count what embedding and head share."""
        return self.table_parameters if self.is_tied else 0

    @property
    def projection(self) -> int:
        """Count a projection between the tokens' width and the stream's.

        Embedding and head have one each.
        """
        return self.token_width * self.width if self.token_width != self.width else 0

    @property
    def embedding_parameters(self) -> int:
        """Count the tables of tokens and of positions, and what else the embedding has."""
        return self.table_parameters + self.positions * self.width + self.embedding_vectors + self.projection

    @property
    def head_parameters(self) -> int:
        """Count the last norm, the table, tied or not, and its bias."""
        return self.head_vectors + self.projection + self.table_parameters + self.has_head_bias * self.vocabulary

    @property
    def _outside(self) -> int:
        return self.embedding_parameters + self.head_parameters - self.tied_parameters
