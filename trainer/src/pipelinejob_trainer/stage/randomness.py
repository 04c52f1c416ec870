"""Random numbers of dropout and the like: a function of seed, step, micro-batch and layer.

The state is set before each layer of each pass, so none has to be kept: a layer that runs again,
because its stage recomputes or because a run resumes from a checkpoint, draws the same numbers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from pipelinejob_trainer.base.seeds import mix, seed_python_and_numpy

Reseed = Callable[[int, int], None]


def reseeder(device: torch.device, *, of_torch_alone: bool = False) -> Reseed:
    """Return a function that sets the random state, given a pass's seed and a layer's index.

    Only generators that a layer on this device can use are set; torch.manual_seed sets those of
    all devices. Python's and numpy's are set, too, but for layers that are known to draw from
    torch's alone.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])

    def reseed(seed: int, layer: int) -> None:
        state = mix(seed, layer)
        for generator in generators:
            generator.manual_seed(state)
        if not of_torch_alone:
            seed_python_and_numpy(state)

    return reseed


def seed_of_pass(seed: int, step: int, sample: int) -> int:
    """Return the seed of a micro-batch's pass through all layers.

    `sample` is the micro-batch's number in the global batch: replica * micro-batches +
    micro-batch.
    """
    return mix(seed, step, sample)


def preserving_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's random state of the CPU and this device afterwards."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else ())
