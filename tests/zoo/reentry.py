"""Layers that run again by themselves, and layers that write where they read."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.habit import VOCABULARY, WIDTH
from zoo.ordinary import Dropout, Embedding, Half


class Checkpointed(Half):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class CheckpointedDropout(Dropout):
    def forward(self, x):
        return x + checkpoint(super().forward, x, use_reentrant=False)


class CheckpointedInside(Half):
    """Runs a part again that takes the weight as it stands."""

    def forward(self, x):
        return x + checkpoint(lambda y: torch.tanh(self.linear(y)), x.sin(), use_reentrant=False)


class CheckpointedTwice(Half):
    """Has a checkpoint within a checkpoint."""

    def forward(self, x):
        return checkpoint(
            lambda y: checkpoint(super(CheckpointedTwice, self).forward, y, use_reentrant=False) * 0.9,
            x,
            use_reentrant=False,
        )


class OldCheckpointed(Half):
    """By the checkpoint that runs a backward pass within the backward pass."""

    def forward(self, x):
        return x + checkpoint(lambda y: torch.tanh(self.linear(y)), x.clone(), use_reentrant=True)


class DoubleBackward(nn.Module):
    """Is the gradient of an energy, and is itself differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1, bias=False))

    def forward(self, x):
        with torch.enable_grad():
            given = x if x.requires_grad else x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(given).sum(), given, create_graph=True)
        return x - force


class BackwardInside(Half):
    """Trains a part of itself in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.aside(x.detach()).pow(2).mean().backward()
        return super().forward(x)


class InPlace(nn.Module):
    """Changes what it was given before it uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x *= 0.5
        x += 0.1
        return x + torch.tanh(self.linear(x))


class InPlaceAlone(nn.Module):
    """Changes what it was given, and returns that."""

    def forward(self, x):
        return x.mul_(0.9)


class InPlaceOfPart(Half):
    """Changes a part of what it was given."""

    def forward(self, x):
        x[..., :2] += 0.5
        x[:, 0].mul_(0.5)
        return super().forward(x)


class InPlaceActivation(Half):
    """Begins with an activation that writes over what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        return super().forward(self.act(x))


class InPlaceUnseen(Half):
    """Changes what it was given where autograd does not look."""

    def forward(self, x):
        with torch.no_grad():
            x.data.clamp_(-1, 1)
        return super().forward(x)


class InPlaceResult(Half):
    """Writes over its own result, the last thing it does."""

    def forward(self, x):
        return super().forward(x).add_(1).mul_(0.9)


class ShiftingEmbedding(Embedding):
    """Changes the token ids that it was given."""

    def forward(self, tokens):
        return self.token(tokens.add_(1).remainder_(VOCABULARY))


class NormedEmbedding(Embedding):
    """Changes rows of its weight before it looks them up."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH, max_norm=2.0)


class ClampedWeight(Half):
    """Holds its weight between bounds, at each pass."""

    def forward(self, x):
        with torch.no_grad():
            self.linear.weight.clamp_(-0.2, 0.2)
        return super().forward(x)
