"""A model that says what it is told to, for tests of what a front makes of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


class Scripted:
    """A whole model as one stage: after so many tokens of a text it says the next of `script`, by its place.

    `unlikely` is the logit of all other tokens; where the script says -1, logits are no numbers.
    """

    def __init__(self, script: Sequence[int], *, size: int = 257, unlikely: float = -30.0) -> None:
        self._script = script
        self._size = size
        self._unlikely = unlikely

    def run(self, rows: Any, received: Any) -> torch.Tensor:
        logits = torch.full((len(rows), self._size), self._unlikely)
        for place, row in enumerate(rows):
            token = self._script[row.length] if row.length < len(self._script) else 0
            if token < 0:
                logits[place] = float("nan")
            else:
                logits[place, token] = 0.0
        return logits


def write_word_tokenizer(to: Path) -> None:
    """Write a tokenizer of words as sentencepiece has them: a space belongs to the word behind it."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ("<end>", "<unk>", "\u2581The", "\u2581sky", "\u2581is", "\u2581blue", ".")
    fast = Fast(models.WordLevel({each: place for place, each in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    fast.decoder = decoders.Metaspace(prepend_scheme="first")
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>", unk_token="<unk>").save_pretrained(to)
