"""What dropout and the like draw: a function of seed, step, micro-batch and layer, whatever the split and the schedule.

The state is set before each layer of each pass, so that nothing of it is kept: a layer that runs again, because its
stage recomputes, or because a run resumes from a checkpoint, draws what it drew before.
"""

from collections.abc import Callable

import torch

from pipelinejob_trainer.data import mix

Reseed = Callable[[int, int], None]


def reseeder(device: torch.device) -> Reseed:
    """Give what sets the random state for a layer of a pass, called with the pass's seed and the layer's index.

    Only the generators that a layer on this device can draw from are set: torch.manual_seed sets those of all devices.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])

    def reseed(seed: int, layer: int) -> None:
        state = mix(seed, layer)
        for generator in generators:
            generator.manual_seed(state)

    return reseed


def seed_of_pass(seed: int, step: int, sample: int) -> int:
    """Give the seed of a micro-batch's pass through all layers.

    `sample` is the micro-batch's number in the global batch: replica * micro-batches + micro-batch.
    """
    return mix(seed, step, sample)
