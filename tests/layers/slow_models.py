"""Layers that take a stated time, and much longer where they are told to: on one stage, or in its first process."""

import os
import time
from functools import cache
from pathlib import Path

import torch
from torch import nn

from pipelinejob.base import names

SLOW_STAGE = "SLOW_STAGE"  # a stage's number
SLOW_PROCESS = "SLOW_PROCESS"  # a file: the first process of that stage writes its number there, and is the slow one
QUICK_S, SLOW_S = 0.002, 0.02
WIDTH = 8


@cache
def _seconds() -> float:
    if SLOW_STAGE not in os.environ or os.environ.get(names.ENV_STAGE) != os.environ[SLOW_STAGE]:
        return QUICK_S
    file = os.environ.get(SLOW_PROCESS)
    if file is None:
        return SLOW_S
    if not Path(file).exists():
        Path(file).write_text(str(os.getpid()))
    return SLOW_S if Path(file).read_text() == str(os.getpid()) else QUICK_S


class Takes(nn.Module):
    """A linear layer that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(_seconds())
        return self.linear(x)


def eight_layers() -> list[nn.Module]:
    return [nn.Embedding(256, WIDTH), *(Takes() for _ in range(6)), nn.Linear(WIDTH, 256)]
