"""Stages that fail as processes do, for tests of chains."""

from __future__ import annotations

import threading
from typing import Any

import torch

from pipelinejob_trainer.base.errors import PeerLostError
from support.serving.serving_chains import HANG_S


class Fragile:
    """A stage that can be told to lose its memory and its place in the chain, as a process that dies does."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward
        self.dies_at: int | None = None
        self.passes = 0

    def run(self, rows: Any, received: Any) -> torch.Tensor:
        self.passes += 1
        if self.passes == self.dies_at:
            with torch.inference_mode():
                for each in (each for pair in self.forward._pool._layers.values() for each in pair):
                    each.fill_(float("nan"))
            raise PeerLostError("it died")
        return self.forward.run(rows, received)


class Allergic:
    """A stage that is lost whenever it sees a token."""

    def __init__(self, forward: Any, token: int) -> None:
        self._forward = forward
        self._token = token

    def run(self, rows: Any, received: Any) -> torch.Tensor:
        if any(self._token in row.tokens for row in rows):
            raise PeerLostError("it cannot bear this token")
        output: torch.Tensor = self._forward.run(rows, received)
        return output


class Gate:
    """A stage that works only while it is open."""

    def __init__(self, forward: Any) -> None:
        self._forward = forward
        self.opened = threading.Event()

    def run(self, rows: Any, received: Any) -> torch.Tensor:
        assert self.opened.wait(HANG_S)
        output: torch.Tensor = self._forward.run(rows, received)
        return output


class Endless:
    """A stage whose passes end when the test says so."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def run(self, rows: Any, received: Any) -> torch.Tensor:
        self.may_end.wait()
        return torch.zeros(len(rows), 2)
