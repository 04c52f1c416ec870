"""Text as it comes token by token: whole characters, no stop, and the bytes of each token."""

import pytest

from pipelinejob_trainer.serving.front.text import FolderTokenizer, Unfolding
from support.serving.serving_fronts import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> FolderTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return FolderTokenizer(folder)


def test_text_comes_whole_though_its_characters_take_several_tokens(tokenizer: FolderTokenizer) -> None:
    text = "naïve — 日本語 🙂!"
    unfolding = Unfolding(tokenizer, ())

    told = [unfolding.add(token) for token in tokenizer.encode(text)] + [unfolding.end()]

    assert "".join(told) == text
    assert not any("\ufffd" in each for each in told)


def test_bytes_that_never_become_text_are_told_after_a_while(tokenizer: FolderTokenizer) -> None:
    (broken,) = (token for token in range(257) if tokenizer.bytes_of(token) == b"\xff")
    unfolding = Unfolding(tokenizer, ())

    told = [unfolding.add(broken) for _ in range(40)]

    assert len("".join(told)) >= 32
    assert len("".join(told) + unfolding.end()) == 40


@pytest.mark.parametrize(("stops", "told"), [(["lo, w"], "Hel"), (["xx", "o,"], "Hell"), (["world!"], "Hello, world")])
def test_a_stop_is_never_told_not_even_its_beginning(tokenizer: FolderTokenizer, stops: list[str], told: str) -> None:
    unfolding = Unfolding(tokenizer, stops)
    found = ""
    for token in tokenizer.encode("Hello, world"):
        if not unfolding.is_stopped:
            found += unfolding.add(token)
            assert told.startswith(found)

    assert found + unfolding.end() == told
