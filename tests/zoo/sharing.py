"""Layers that share: parameters under two names, weights on one memory, buffers and whole modules of several layers."""

import torch
from torch import nn

from zoo.habit import VOCABULARY, WIDTH, Board
from zoo.ordinary import Embedding, Half, Head


class TiedInside(nn.Module):
    """Has one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.down.weight = self.up.weight

    def forward(self, x):
        return x + torch.tanh(self.down(torch.tanh(self.up(x))))


class StoredInside(TiedInside):
    """Has two weights on one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(WIDTH, WIDTH, bias=False)
        self.down.weight.data = self.up.weight.data


class Slices(nn.Module):
    """Cuts two weights out of one piece of memory, as flattened parameters are; they do not overlap."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(2, WIDTH, WIDTH) / WIDTH
        self.first, self.second = nn.Parameter(whole[0]), nn.Parameter(whole[1])

    def forward(self, x):
        return x + torch.tanh(x @ self.first) @ self.second


class Doubled(Half):
    """Has one module, with its weight and its buffer, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.again = self.norm

    def forward(self, x):
        return super().forward(self.again(x.transpose(1, 2)).transpose(1, 2))


class BorrowingByList(nn.Module):
    """Uses its own weight by a list, which torch does not look into."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.weights = [self.linear.weight, self.linear.bias]

    def forward(self, x):
        return x + torch.tanh(nn.functional.linear(x, *self.weights))


class Masked(nn.Module):
    """Looks back only, by a mask that others may have too."""

    def __init__(self, mask) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", mask)

    def forward(self, x):
        length = x.shape[1]
        scores = (x @ x.transpose(1, 2)).masked_fill(~self.mask[:length, :length], -1e9)
        return x + torch.tanh(self.linear(scores.softmax(-1) @ x))


class Counted(Half):
    """Counts in a buffer that others may count in too."""

    def __init__(self, count) -> None:
        super().__init__()
        self.register_buffer("count", count)

    def forward(self, x):
        if self.training:
            self.count += 1
        return super().forward(x) * (1 + 0.01 * self.count)


class Borrowing(nn.Module):
    """Uses the embedding's weight without saying so to torch: it stands in a list."""

    def __init__(self, weight) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.borrowed = [weight]

    def forward(self, x):
        return x + self.norm(x) @ self.borrowed[0][:WIDTH]


def tied(board: Board) -> nn.Module:
    """Share one weight with all others of this habit."""
    layer = Half()
    layer.linear.weight = board.setdefault("tied", layer.linear.weight)
    return layer


def stored(board: Board) -> nn.Module:
    """Share memory with all others of this habit, each with a parameter of its own."""
    layer = Half()
    layer.linear.weight.data = board.setdefault("stored", layer.linear.weight.data)
    return layer


def repeated(board: Board) -> nn.Module:
    """Return one module for all of this habit."""
    return board.setdefault("repeated", Half())


def repeated_counter(board: Board) -> nn.Module:
    """Return one module that counts for all of this habit."""
    return board.setdefault("repeated-counter", Counted(torch.zeros(())))


def masked(board: Board) -> nn.Module:
    """Share a mask with all others of this habit."""
    return Masked(board.setdefault("mask", torch.ones(64, 64, dtype=torch.bool).tril()))


def counted(board: Board) -> nn.Module:
    """Share a count with all others of this habit."""
    return Counted(board.setdefault("count", torch.zeros(())))


def borrowing(board: Board) -> nn.Module:
    """Use the shared embedding's weight from a list."""
    return Borrowing(_shared(board))


def peeking(board: Board) -> nn.Module:
    """Look at the shared embedding's weight, as it stands, from a list."""
    return Borrowing(_shared(board).detach())


def shared_embedding(board: Board) -> nn.Module:
    """Embed by a weight that others may use too."""
    layer = Embedding()
    layer.token.weight = _shared(board)
    return layer


def shared_head(board: Board) -> nn.Module:
    """Return logits by the embedding's weight."""
    layer = Head()
    layer.logits.weight = _shared(board)
    return layer


def stored_head(board: Board) -> nn.Module:
    """Return logits by a parameter on the embedding's memory."""
    layer = Head()
    layer.logits.weight.data = _shared(board).data
    return layer


def _shared(board: Board) -> nn.Parameter:
    return board.setdefault("embedding", nn.Parameter(torch.randn(VOCABULARY, WIDTH) / WIDTH))
