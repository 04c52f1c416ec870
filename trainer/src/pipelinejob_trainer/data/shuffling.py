"""An order that needs no memory: any place of a shuffled range, computed from a key alone."""

from functools import lru_cache

from pipelinejob_trainer.base.seeds import mix

_NUM_TURNS = 4


def shuffled(place: int, size: int, *, key: int) -> int:
    """Return the image of `place` in a pseudo-random permutation of range(size).

    A Feistel network permutes a power of four that covers the range; iterating until the result is
    in the range keeps it a permutation (Black and Rogaway, 2002). That takes fewer than four
    iterations on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    turns = _turns(key)
    while True:
        left, right = place >> half, place & mask
        for turn in turns:
            left, right = right, left ^ (mix(right, state=turn) & mask)
        place = left << half | right
        if place < size:
            return place


@lru_cache(maxsize=64)  # the orders that are in use: of an epoch, of a source
def _turns(key: int) -> tuple[int, ...]:
    """Return what is hashed before a number, in each turn of the network."""
    return tuple(mix(key, turn) for turn in range(_NUM_TURNS))
