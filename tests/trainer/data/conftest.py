"""A tokenizer that was trained on documents of Python's documentation."""

from pathlib import Path

import pytest

from support.tokens.preparing import tokenizer_folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))
