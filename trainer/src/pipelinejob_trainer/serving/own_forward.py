"""One stage's layers of a model of transformers, run by the model's own forward with a cache.

As in training (`models/huggingface/chunk.py`), blocks before the stage pass on what they are
given, the last of them what was received, and behind the stage's last block the forward is left;
but here nothing needs gradients, so that the stage's embedding, blocks and head run in one
forward.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from pipelinejob.serving.passes import Row
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.huggingface.cut import Cut
from pipelinejob_trainer.serving.cache import Pool, View


class _Left(BaseException):  # no error; and transformers may catch those
    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output


class OwnForward:
    """Layers [first, end) of a cut model, filled and in evaluation mode.

    `mixes_lengths` is whether sequences of different lengths may be in one pass; else each runs by
    itself, and with `apart` whatever their lengths. Raises UserError for a model that takes no
    cache of keys and values.
    """

    def __init__(
        self, cut: Cut, first: int, end: int, pool: Pool, *, mixes_lengths: bool = True, apart: bool = False
    ) -> None:
        self._cut = cut
        self._first = first
        self._end = end
        self._pool = pool
        self._mixes_lengths = mixes_lengths
        self._apart = apart
        self._accepts = set(inspect.signature(cut.model.forward).parameters)
        if "cache" not in self._accepts:
            raise UserError(
                "NotServable",
                f"spec.model.huggingFace: a {cut.config.model_type} takes no cache of keys and values; it can be"
                " trained, not served",
            )
        self._received: torch.Tensor | None = None
        for index, block in enumerate(cut.blocks, start=1):
            vars(block).pop("forward", None)  # the one of training stands there
            if index < first:
                block.forward = partial(self._pass_on, index, block)
            elif index >= end:
                block.forward = self._leave
        if first == 1:
            self._replace_input()
        if first < end == cut.names.head_index and end > 1:  # no block follows in which to leave
            last = cut.blocks[-1]
            last.forward = partial(self._leave_after, last.forward)
        cut.model.eval()

    @property
    def is_last(self) -> bool:
        """Whether the stage holds the head."""
        return self._end == self._cut.names.head_index + 1

    @torch.inference_mode()
    def run(self, rows: tuple[Row, ...], received: torch.Tensor | None) -> torch.Tensor:
        """Run rows of equally many tokens; return hidden (rows, tokens, hidden), or logits (rows, vocabulary).

        `received` is the stage before's output; None where this stage holds the embedding.
        """
        if len(rows) == 1 or (not self._apart and (self._mixes_lengths or len({row.length for row in rows}) == 1)):
            return self._forward(rows, received)
        parts = [
            self._forward((row,), None if received is None else received[place : place + 1])
            for place, row in enumerate(rows)
        ]
        return torch.cat(parts)

    def _forward(self, rows: tuple[Row, ...], received: torch.Tensor | None) -> torch.Tensor:
        device = torch.device("cpu") if received is None else received.device
        view = View(self._pool, rows, num_layers=len(self._cut.blocks), device=device)
        if received is None:
            tokens = torch.tensor([row.tokens for row in rows], dtype=torch.int64)
        else:
            tokens = torch.zeros((), dtype=torch.int64, device=device).expand(received.shape[:2])
        given = {
            "input_ids": tokens,
            "position_ids": view.positions if self._cut.anatomy.counts_positions else None,
            "attention_mask": view.mask,
            "cache": view,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        self._received = received
        try:
            output = self._cut.model(**{name: each for name, each in given.items() if self._takes(name, each)})
        except _Left as left:
            return left.output
        finally:
            self._received = None
        logits: torch.Tensor = output[0] if isinstance(output, tuple) else output.logits
        return logits[:, -1]

    def _takes(self, name: str, value: Any) -> bool:
        return name in self._accepts and value is not None

    def _pass_on(self, index: int, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if index == self._first - 1:
            assert self._received is not None, "a stage without the embedding is given what came before"
            hidden = self._received
        length = self._cut.anatomy.answers[type(block).__qualname__]
        return hidden if length is None else (hidden, *(None,) * (length - 1))

    def _leave(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise _Left(args[0] if args else kwargs["hidden_states"])

    def _leave_after(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
        output = forward(*args, **kwargs)
        raise _Left(output[0] if isinstance(output, tuple) else output)

    def _replace_input(self) -> None:
        """Let the first block of a stage that begins with it take what was received."""
        block = self._cut.blocks[0]
        forward = block.forward

        def received(*args: Any, **kwargs: Any) -> Any:
            assert self._received is not None, "a stage without the embedding is given what came before"
            return (
                forward(self._received, *args[1:], **kwargs)
                if args
                else forward(**kwargs | {"hidden_states": self._received})
            )

        block.forward = received
