"""A text to train on, gangs, and one thread a process: several that each reckon little mostly wait for each other."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipelinejob.contract.plan import Plan
from support.training.gangs import Gang


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of all bytes, in no simple order."""
    path = tmp_path / "text"
    path.write_bytes(bytes((i * i * 31 + i // 7) % 256 for i in range(20_000)))
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Gang]]:
    """Return gangs in folders of their own; none outlives the tests."""
    gangs: list[Gang] = []

    def start(wanted: Plan, **variables: str) -> Gang:
        folders = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, folders)), **variables}
        gang = Gang(tmp_path_factory.mktemp("gang"), wanted, environment=environment)
        gangs.append(gang)
        return gang.start()

    yield start
    for gang in gangs:
        gang.kill()
