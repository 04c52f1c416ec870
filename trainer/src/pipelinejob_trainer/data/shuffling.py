"""An order that needs no memory: any place of a shuffled range, computed from a key alone."""

from pipelinejob_trainer.base.seeds import mix


def shuffled(place: int, size: int, *, key: int) -> int:
    """Return the image of `place` in a pseudo-random permutation of range(size).

    A Feistel network permutes a power of four that covers the range; iterating until the result is
    in the range keeps it a permutation (Black and Rogaway, 2002). That takes fewer than four
    iterations on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            left, right = right, left ^ (mix(key, turn, right) & mask)
        place = left << half | right
        if place < size:
            return place
