"""What transformers' `generate` says greedily, and where an answer parts from it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from support.serving.serving_chains import HANG_S, Told

NEAR = 1e-3  # a margin between the two likeliest tokens below which sums in another order may choose the other


class Greedy(NamedTuple):
    """An answer, and by how much each token was likelier than the next likely one."""

    tokens: list[int]
    margins: list[float]


def generated(model: Any, prompt: Sequence[int], new: int) -> Greedy:
    tokens = torch.tensor([prompt])
    with torch.inference_mode():
        said = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = [each[0].topk(2).values for each in said.logits]
    return Greedy(said.sequences[0, len(prompt) :].tolist(), [float(one - other) for one, other in best])


def parted(told: Told, expected: Greedy) -> float | None:
    """Return the margin where an answer parts from the expected one; None where it does not."""
    assert told.done.wait(HANG_S)
    assert not told.failed
    assert len(told.tokens) == len(expected.tokens)
    pairs = zip(told.tokens, expected.tokens, expected.margins, strict=True)
    return next((margin for mine, theirs, margin in pairs if mine != theirs), None)


def bits(told: Told) -> list[tuple[int, float, float]]:
    """Return each token with its probability and margin, which differ where a sum was added in another order."""
    assert told.done.wait(HANG_S)
    assert not told.failed
    return [(each.token, each.logprob, each.margin) for each in told.sampled]
