"""Whether a model may be served: a small copy of it, run with the cache of stages, against itself run whole.

The copy is the one of training's check. Two sequences of different lengths go through two stages:
their beginnings in chunks, then a token of both at a time. Each logit must be what the whole model
gives without any cache, but for the order of sums. It catches what a cache of keys and values does
not hold: recurrent states, caches that layers share, positions that a model counts by itself.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

import torch

from pipelinejob.serving.passes import Row
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.base.user_code import error_text
from pipelinejob_trainer.models.huggingface.check import Whole, check_with, whole_logits
from pipelinejob_trainer.models.huggingface.cut import cut, materialise
from pipelinejob_trainer.models.huggingface.find import num_blocks
from pipelinejob_trainer.models.identity import places
from pipelinejob_trainer.serving.cache import Pool
from pipelinejob_trainer.serving.own_forward import OwnForward

_SAME = 1e-4  # of the largest logit: sums of other lengths are added in another order
_BLOCK = 3
_CHUNKS = ((3, 2), (7,))  # of each sequence's beginning
_LENGTH = 12

_checked: dict[str, "Servable"] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Servable:
    """What was found out: whether sequences of different lengths may be in one pass, and what to say of it."""

    mixes_lengths: bool
    sentence: str


def check_decoding(config: Any, *, trust_remote_code: bool = False) -> Servable:
    """Check that stages with caches give what the whole model gives, once in a process.

    Raises UserError, with the reason, for a model that cannot be cut, or not be served.
    """
    key = json.dumps([config.to_dict(), trust_remote_code], sort_keys=True, default=str)
    if key not in _checked:
        _checked[key] = _check(config, trust_remote_code=trust_remote_code)
    return _checked[key]


def _check(config: Any, *, trust_remote_code: bool) -> Servable:
    begun = time.perf_counter()
    _, whole = check_with(config, trust_remote_code=trust_remote_code)
    for mixes_lengths in (True, False):
        difference = _difference(whole, mixes_lengths=mixes_lengths, trust_remote_code=trust_remote_code)
        if not difference:
            how = (
                "" if mixes_lengths else "; sequences of different lengths run one after another: in one batch it errs"
            )
            seconds = time.perf_counter() - begun
            return Servable(
                mixes_lengths=mixes_lengths,
                sentence=f"checked: a small {config.model_type} with caches in two stages, in chunks and batches, gives"
                f" what the whole one does without ({seconds:.1f} s){how}",
            )
    raise UserError(
        "NotServable",
        f"spec.model.huggingFace: a {config.model_type} cannot be served: a small copy of it with a cache of keys and"
        f" values {difference}; it can be trained, and `transformers` can generate from the export",
    )


def _difference(whole: Whole, *, mixes_lengths: bool, trust_remote_code: bool) -> str:
    tokens = whole.tokens[:, :_LENGTH]
    whole.model.eval()
    with torch.inference_mode():
        expected = whole_logits(whole.model, tokens)
    try:
        stages = _stages(whole, mixes_lengths=mixes_lengths, trust_remote_code=trust_remote_code)
        found = _decoded(stages, tokens.tolist())
    except Exception as error:  # noqa: BLE001 # whatever a family's code raises, it is the reason
        return f"fails: {error_text(error)}"
    scale = float(expected.abs().max())
    worst = max(float((logits - expected[row, place]).abs().max()) for (row, place), logits in found.items())
    return "" if worst <= _SAME * scale else f"differs from the whole one without by {worst / scale:.1e} of its logits"


def _stages(whole: Whole, *, mixes_lengths: bool, trust_remote_code: bool) -> list[OwnForward]:
    end = num_blocks(whole.config) + 2
    middle = end // 2
    values = dict(whole.model.named_parameters(remove_duplicate=False)) | dict(
        whole.model.named_buffers(remove_duplicate=False)
    )
    stages = []
    for first, stop in ((0, middle), (middle, end)):
        part = cut(whole.config, range(first, stop), whole.anatomy, trust_remote_code=trust_remote_code)
        for index in range(first, stop):
            for place in places(index, materialise(part, index)):
                if place.tensor is not None and (not place.is_buffer or place.is_kept):
                    value = values[part.names.full(place.name)].detach()
                    place.put(value if place.is_buffer else torch.nn.Parameter(value))
        pool = Pool(num_blocks=2 * -(-_LENGTH // _BLOCK), block=_BLOCK)
        stages.append(OwnForward(part, first, stop, pool, mixes_lengths=mixes_lengths))
    return stages


def _decoded(stages: list[OwnForward], tokens: list[list[int]]) -> dict[tuple[int, int], torch.Tensor]:
    """Return the logits after each (sequence, position) that was computed last in a pass."""
    each = -(-_LENGTH // _BLOCK)
    found: dict[tuple[int, int], torch.Tensor] = {}

    def row(sequence: int, start: int, count: int) -> Row:
        return Row(
            sequence=sequence,
            tokens=tuple(tokens[sequence][start : start + count]),
            start=start,
            blocks=tuple(range(sequence * each, (sequence + 1) * each)),
        )

    def run(*rows: Row) -> None:
        output = None
        for stage in stages:
            output = stage.run(rows, output)
        assert output is not None, "there are two stages"
        found.update({(one.sequence, one.length - 1): logits for one, logits in zip(rows, output, strict=True)})

    begun = [0, 0]
    for sequence, chunks in enumerate(_CHUNKS):
        for count in chunks:
            run(row(sequence, begun[sequence], count))
            begun[sequence] += count
    while max(begun) < _LENGTH:
        run(*(row(sequence, start, 1) for sequence, start in enumerate(begun)))
        begun = [start + 1 for start in begun]
    while min(begun) < _LENGTH:
        run(row(0, begun[0], 1))
        begun[0] += 1
    return found
