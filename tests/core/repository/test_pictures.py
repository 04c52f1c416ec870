"""The pictures in the documentation show pages as they look now."""

import re

import pytest

import pictures


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_shows_the_page_as_it_looks_now(name: str) -> None:
    assert pictures.digest(name) == pictures.recorded()[name], (
        f"docs/images/{name}.png was drawn from a page that looked otherwise; draw it with `make pictures`"
    )


def test_every_picture_of_the_documentation_is_made_by_the_command() -> None:
    texts = [pictures.ROOT / "README.md", *(pictures.ROOT / "docs").rglob("*.md")]
    shown = {name for text in texts for name in re.findall(r"images/(\w+)\.png", text.read_text())}

    assert shown == set(pictures.PICTURES)
    assert {file.stem for file in pictures.FOLDER.glob("*.png")} == shown
