"""Whether ranks that hold the same layers hold the same shapes: replicas of a stage, and those that share its layers.

They were made by each from its own image and folder. Sums of tensors of other shapes would end in
gloo's or NCCL's words, or in none.
"""

import hashlib
import json

import torch

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.gang import Gang
from pipelinejob_trainer.communication.process_groups import who
from pipelinejob_trainer.runtime.rank import Rank

_DIGEST_BYTES = 8


def check_shapes(rank: Rank, gang: Gang) -> None:
    """Compare with the others of this stage; all ranks of the gang call it.

    Raises UserError, on all of them, that names a tensor and its two shapes.
    """
    mine = _shapes(rank)
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).digest()[:_DIGEST_BYTES]
    rows = gang.gather(torch.tensor(list(digest), dtype=torch.uint8))
    other = next(
        (each for each in range(len(rows)) if not torch.equal(rows[each], rows[_first_like(each, gang)])), None
    )
    if other is None:
        return
    of_all = gang.gather_values(mine)  # of the whole gang, which ends with it
    expected, found = of_all[_first_like(other, gang)], of_all[other]
    names = (*expected, *(name for name in found if name not in expected))
    name = next(name for name in names if expected.get(name) != found.get(name))
    raise UserError(
        "ShapesDiffer",
        f"{_who(other, gang)} has {name} of shape {_shown(found.get(name))}, and {_who(_first_like(other, gang), gang)}"
        f" of shape {_shown(expected.get(name))}; they share the layer, so all pods need the same image, and the same"
        " files in spec.model's folder",
    )


def _shapes(rank: Rank) -> dict[str, list[int]]:
    """Return the shapes of whole parameters, of which a rank may have a part."""
    portions = rank.part.portions
    return {
        name: list(portions[name].shape if name in portions else each.shape)
        for name, each in rank.part.named_parameters().items()
    }


def _first_like(rank: int, gang: Gang) -> int:
    """Return the first rank that holds the same layers."""
    return rank // gang.num_tensor % gang.num_stages * gang.num_tensor


def _who(rank: int, gang: Gang) -> str:
    return who(rank, pipeline=gang.num_stages, tensor=gang.num_tensor)


def _shown(shape: list[int] | None) -> str:
    return "none at all" if shape is None else str(tuple(shape))
