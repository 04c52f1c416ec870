"""The source of all pseudo-random numbers of a run: seeds, orders, initial weights."""

import random

import numpy as np

_WORD = 2**64 - 1


def mix(*values: int, state: int = 0) -> int:
    """Hash integers to 64 bits (splitmix64, folded).

    `state` is the hash of those that come before: mix(a, b) is mix(b, state=mix(a)).
    """
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state


def seed_python_and_numpy(state: int) -> None:
    """Set the process's own generators, which layers may draw from beside torch's."""
    random.seed(state)
    np.random.seed(state % 2**32)  # noqa: NPY002 # the one that layers draw from
