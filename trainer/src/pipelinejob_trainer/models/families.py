"""The built-in model families: how their layers are made.

The sizes of each are a type of the core (`pipelinejob.spec.families.built_in`), which counts its
layers and names them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipelinejob.spec.families.built_in import BUILT_IN
from pipelinejob.spec.families.family import BuiltIn
from pipelinejob_trainer.models import gpt
from pipelinejob_trainer.models.decoder import layers as decoder
from pipelinejob_trainer.models.tensor_parallel import Slices


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's layers are made.

    `layer` makes layer `index` of the global list, from sizes, index, and the length of sequences.
    `tied` maps the global names of tied parameters to those of the parameters that they share.
    `slices` says how a layer's parameters are divided over a tensor group, by their names in it;
    without it they cannot be. `expert_slices` says the same of experts and a group of replicas.
    """

    layer: Callable[[Any, int, int], nn.Module]
    tied: Callable[[Any], Mapping[str, str]]
    slices: Callable[[Any, int], Slices] | None = None
    expert_slices: Callable[[Any, int], Slices] | None = None


FAMILIES: Mapping[str, Family] = {
    "gpt": Family(gpt.layer, gpt.tied, gpt.slices),
    "decoder": Family(decoder.layer, decoder.tied, decoder.slices, decoder.expert_slices),
}
"""The families by their fields in `spec.model`, as in the core's `BUILT_IN`."""


def family_of(sizes: BuiltIn) -> Family:
    """Return how the layers of a model of these sizes are made."""
    return next(FAMILIES[name] for name, kind in BUILT_IN.items() if type(sizes) is kind)
