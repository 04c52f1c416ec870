"""What a habit is: a way to write a layer, known by its name.

A class is one that shares nothing. A function is one whose layers share something, by the model's **board**: what the
first of them puts there, the others take.
"""

from collections.abc import Callable

from torch import nn

WIDTH = 8
VOCABULARY = 256  # tokens are bytes

Board = dict[str, object]
Habit = Callable[[Board], nn.Module]


def named(*makers: type[nn.Module] | Habit) -> dict[str, Habit]:
    """Return habits by their names: `MovingMean` is `moving-mean`, `shared_head` is `shared-head`."""
    return {_name(maker): _sharing_nothing(maker) if isinstance(maker, type) else maker for maker in makers}


def _name(maker: type[nn.Module] | Habit) -> str:
    spelled = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in maker.__name__)
    return spelled.lstrip("-").replace("_", "-")


def _sharing_nothing(maker: type[nn.Module]) -> Habit:
    return lambda _: maker()
