"""A text to train on; and one thread a process, for several that each reckon little mostly wait for each other."""

from pathlib import Path

import pytest
import torch


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of all bytes, in no simple order."""
    path = tmp_path / "text"
    path.write_bytes(bytes((i * i * 31 + i // 7) % 256 for i in range(20_000)))
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
