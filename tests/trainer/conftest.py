"""A text to train on."""

from pathlib import Path

import pytest


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of all bytes, in no simple order."""
    path = tmp_path / "text"
    path.write_bytes(bytes((i * i * 31 + i // 7) % 256 for i in range(20_000)))
    return path
