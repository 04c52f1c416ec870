"""Chooses tokens from logits, on the last stage.

A choice depends on the row alone: its logits, how it is to be sampled, its seed and its place in
the text. So the same request gives the same text whoever else is in the batch, and a sequence that
is computed again goes on as it began.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch

from pipelinejob.serving.passes import Row, Sampled, Sampling
from pipelinejob_trainer.base.seeds import mix

_FRACTION = 2.0**-53
_LEAST_LOGPROB = -9999.0  # JSON has no infinity
_GREEDY = 1e-5  # at temperatures below, float32 knows the likeliest alone, or not even that


def sample(rows: Sequence[Row], logits: torch.Tensor) -> tuple[Sampled, ...]:
    """Choose a token for each row that asks for one; logits are (rows, vocabulary)."""
    wanted = [(place, row, row.sampling) for place, row in enumerate(rows) if row.sampling is not None]
    if not wanted:
        return ()
    logits = logits[[place for place, _, _ in wanted]].float()
    best, likeliest = logits.topk(min(2, logits.shape[-1]), dim=-1)
    highest, margins = best[:, 0].tolist(), (best[:, 0] - best[:, -1]).tolist()  # what is no number counts as highest
    return tuple(
        _sampled(row, sampling, logits[place], int(likeliest[place, 0]), margins[place])
        if math.isfinite(highest[place])
        else Sampled(sequence=row.sequence, token=int(likeliest[place, 0]), are_numbers=False)
        for place, (_, row, sampling) in enumerate(wanted)
    )


def _sampled(row: Row, sampling: Sampling, logits: torch.Tensor, likeliest: int, margin: float) -> Sampled:
    if sampling.counts_tokens:
        logits = _penalised(logits, sampling, row)
        likeliest = int(logits.argmax())
    token = likeliest if sampling.temperature < _GREEDY else _drawn(logits, sampling, place=row.length)
    if sampling.logprobs is None:
        return Sampled(sequence=row.sequence, token=token, margin=margin)
    logprobs = torch.log_softmax(logits, dim=-1)
    values, tokens = logprobs.topk(min(sampling.logprobs, logits.shape[-1]))
    return Sampled(
        sequence=row.sequence,
        token=token,
        logprob=max(float(logprobs[token]), _LEAST_LOGPROB),
        top=tuple(zip(tokens.tolist(), values.clamp(min=_LEAST_LOGPROB).tolist(), strict=True)),
        margin=margin,
    )


def _penalised(logits: torch.Tensor, sampling: Sampling, row: Row) -> torch.Tensor:
    """Lower what was said already: of the answer by OpenAI's two penalties, of all text by the factor."""
    logits = logits.clone()
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*row.prompt, *row.generated}), dtype=torch.int64)
        of_seen, factor = logits[seen], sampling.repetition_penalty
        logits[seen] = torch.where(of_seen > 0, of_seen / factor, of_seen * factor)
    counts = Counter(row.generated)
    if counts:
        tokens = torch.tensor(list(counts), dtype=torch.int64)
        times = torch.tensor(list(counts.values()), dtype=torch.float32)
        logits[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits


def _drawn(logits: torch.Tensor, sampling: Sampling, *, place: int) -> int:
    """Draw from what top-k, then top-p, then min-p leave; the likeliest is always left."""
    most = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    values, tokens = (logits / sampling.temperature).topk(most)  # the likeliest first
    likely = torch.softmax(values, dim=-1, dtype=torch.float64)
    keep = torch.ones_like(likely, dtype=torch.bool)
    if sampling.top_p < 1:
        keep &= likely.cumsum(-1) - likely < sampling.top_p
    if sampling.min_p > 0:
        keep &= likely >= sampling.min_p * likely[0]
    keep[0] = True
    likely = torch.where(keep, likely, torch.zeros_like(likely))
    totals = likely.cumsum(-1)
    at = (mix(sampling.seed, place) >> 11) * _FRACTION * float(totals[-1])
    index = int(torch.searchsorted(totals, at, right=True))
    return int(tokens[min(index, int(keep.nonzero()[-1]))])
