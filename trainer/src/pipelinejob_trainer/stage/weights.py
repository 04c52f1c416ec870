"""Parameters that hold their values only while passes need them, as those that replicas divide among them."""

from collections.abc import Collection
from typing import Protocol


class Weights(Protocol):
    """Makes the values of layers' parameters present, and lets go of those of other layers."""

    def need(self, layers: Collection[int], then: int | None = None) -> None:
        """Return when the parameters of layers hold their values; begin to fetch those of the layer that comes then.

        All ranks that hold the layers call it in the same order. Raises PeerLostError.
        """

    def release(self) -> None:
        """Let go of all values."""
