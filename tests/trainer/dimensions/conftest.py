"""A folder for a file's models and runs, with a text to train on."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folders")
    (path / "text").write_bytes(bytes((i * i * 31 + i // 7) % 256 for i in range(20_000)))
    return path
