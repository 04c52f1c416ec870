"""What every built-in model family says of itself: its sizes, and all that follows from them."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from pipelinejob.base.values import Value
from pipelinejob.models.decoder import Decoder

BYTE_VALUES = 256  # the vocabulary of text that is read as bytes


class BuiltIn(Value, ABC):
    """The sizes of a family's model.

    `layers_cel` is the CEL of its number of layers, from the fields of its sizes.
    """

    layers_cel: ClassVar[str]

    @abstractmethod
    def decoder(self, sequence_length: int) -> Decoder:
        """Return what its layers are made of, which says what they cost.

        Equal sizes give the same object.
        """

    @abstractmethod
    def shrunk(self) -> Self:
        """Return a model with as many layers, each small enough to be run once in passing."""

    def shrunk_to_share(self, tensor: int) -> Self:  # noqa: ARG002 # for families whose layers ranks can share
        """Return one whose layers so many ranks can share; it drops nothing, for each draws numbers of its own."""
        return self.shrunk()

    def with_experts_for(self, replicas: int) -> Self:  # noqa: ARG002 # for families that have experts
        """Return one whose experts so many replicas can share, of a small one; as it is if it has none."""
        return self
