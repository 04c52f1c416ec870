"""A user's model that gives a NaN for one byte, and batches that have it where a test wants one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipelinejob_trainer.data.micro_batch import MicroBatch

POISON = 255
WIDTH = 16


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens) + torch.where(tokens == POISON, torch.nan, 0.0)[..., None]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 3 * WIDTH)
        self.down = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return stream + self.down(torch.tanh(self.up(self.norm(stream))))


class Remembering(nn.Module):
    """Keeps a running mean, as a batch norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.mean.lerp_(stream.mean((0, 1)), 0.1)
        return stream


def layers() -> list[nn.Module]:
    return [Embedding(), Block(), Block(), nn.Linear(WIDTH, 256)]


def remembering() -> list[nn.Module]:
    return [Embedding(), Remembering(), Block(), nn.Linear(WIDTH, 256)]


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """A dataset whose samples of these numbers, counted over the whole run, have the byte."""

    batches: Any
    samples: frozenset[int]

    def batch(self, step: int, replica: int, micro_batch: int) -> MicroBatch:
        read: MicroBatch = self.batches.batch(step, replica, micro_batch)
        of = self.batches
        done = ((step - of.first_step) * of.replicas + replica) * sum(of.rows)
        first = of.samples_before + done + sum(of.rows[:micro_batch])
        tokens = read.tokens.clone()
        for row in range(of.rows[micro_batch]):
            if first + row in self.samples:
                tokens[row, 0] = POISON
        return read._replace(tokens=tokens)

    def describe(self, samples: int) -> list[str]:
        return list(self.batches.describe(samples))

    def resumed(self, **where: int) -> "Poisoned":
        return Poisoned(batches=self.batches.resumed(**where), samples=self.samples)
