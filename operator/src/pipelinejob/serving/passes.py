"""What goes through the chain of stages: a pass, and what comes back of it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a sequence's tokens are chosen; every field as in OpenAI's API, `top_k` 0 and `min_p` 0 are off.

    `logprobs` is how many of the likeliest tokens are told with each chosen one; None: no
    probability is told.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None

    @property
    def counts_tokens(self) -> bool:
        """Whether earlier tokens change the choice."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence's share of a pass: `tokens` to be computed, which stand from `start` on.

    `blocks` hold the keys and values of positions 0 to start + len(tokens) - 1, in order. With
    `sampling` the token after the last is chosen; `prompt` and `generated` are given where that
    choice needs them.
    """

    sequence: int
    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    sampling: Sampling | None = None
    prompt: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Count the positions that the cache holds after the pass."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Rows that go through all stages together: one token each of a group, or a chunk of one sequence's prompt."""

    number: int
    rows: tuple[Row, ...]
    group: int | None = None  # None: a chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """The token that was chosen for a row: its probability's natural logarithm, and those of the likeliest.

    `margin` is by how much the likeliest token's logit was above the second one's. Where logits
    `are_numbers` no longer, the token means nothing.
    """

    sequence: int
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    margin: float = 0.0
    are_numbers: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the last stage says of a pass; rows whose prompt goes on have no token."""

    number: int
    sampled: tuple[Sampled, ...] = field(default=())
