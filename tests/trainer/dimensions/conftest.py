"""A text, and folders for a file's models and runs, in which its tests find each other's checkpoints."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for models and runs, with a text to train on."""
    path = tmp_path_factory.mktemp("folders")
    (path / "text").write_bytes(bytes((i * i * 31 + i // 7) % 256 for i in range(20_000)))
    return path


@pytest.fixture(scope="module")
def text(root: Path) -> Path:
    """The text; one for all tests of a file, since their runs go on with each other's."""
    return root / "text"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")
