"""What layers add to a micro-batch's loss beside what its loss function returns: how evenly experts are used.

    add_to_loss(term)

adds a scalar, a mean over the micro-batch, to the loss of the forward pass that is under way. It
is called on the last stage, where loss and what counts are known: terms of blocks before travel
there beside the hidden state, as a few numbers more in the same message. Outside a training pass
it does nothing, so an evaluation's loss is the loss function's alone.

A term has the micro-batch's weight in the mean over the global batch, as its loss has: by the
targets that count.
"""

from collections.abc import Sequence
from contextvars import ContextVar

import torch

from pipelinejob_trainer.models.losses.counted_loss import CountedLoss

_terms: ContextVar[list[torch.Tensor] | None] = ContextVar("terms_of_loss", default=None)


class Gathering:
    """Gathers the terms that layers add inside `with`."""

    __slots__ = ("_token",)

    def __enter__(self) -> list[torch.Tensor]:
        terms: list[torch.Tensor] = []
        self._token = _terms.set(terms)
        return terms

    def __exit__(self, *_: object) -> None:
        _terms.reset(self._token)


def add_to_loss(term: torch.Tensor) -> None:
    """Add a scalar to the loss of the micro-batch that is run."""
    terms = _terms.get()
    if terms is not None:
        terms.append(term)


def with_terms(loss: CountedLoss, terms: Sequence[torch.Tensor], num_targets: int) -> torch.Tensor:
    """Return a micro-batch's loss and the terms, with the share of its targets that counts.

    That share is what the end of the step divides by.
    """
    value = loss.value
    for term in terms:
        value = value + (term if isinstance(loss.counted, int) else term * (loss.counted / num_targets))
    return value
