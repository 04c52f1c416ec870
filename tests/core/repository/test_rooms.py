"""The rooms of each package: few floors, no arrow back, a picture of the real imports."""

from graphlib import CycleError

import pytest

import rooms

MOST_FLOORS = 8
HOUSE = {
    "attic": frozenset({"kitchen", "cellar"}),
    "kitchen": frozenset({"cellar"}),
    "garage": frozenset({"cellar"}),
    "cellar": frozenset(),
}


def test_a_room_stands_one_floor_above_the_highest_that_it_imports_from() -> None:
    assert rooms.floors_of(HOUSE) == [["cellar"], ["kitchen", "garage"], ["attic"]]


def test_an_arrow_that_others_imply_is_left_out() -> None:
    assert rooms.arrows_of(HOUSE) == [("attic", "kitchen"), ("kitchen", "cellar"), ("garage", "cellar")]


def test_rooms_that_import_each_other_are_refused_by_name() -> None:
    with pytest.raises(CycleError, match=r"attic.*cellar|cellar.*attic"):
        rooms.floors_of({**HOUSE, "cellar": frozenset({"attic"})})


@pytest.mark.parametrize("package", rooms.PACKAGES.values())
def test_a_package_has_few_floors_and_no_arrow_back(package: str) -> None:
    assert len(rooms.floors_of(rooms.imports_of(package))) <= MOST_FLOORS


@pytest.mark.parametrize(("name", "package"), rooms.PACKAGES.items())
def test_the_picture_in_the_documentation_shows_the_imports_as_they_are(name: str, package: str) -> None:
    assert rooms.picture_of(name).read_text() == rooms.drawn(package), "write it with `make generate`"
    assert f"images/{rooms.picture_of(name).name})" in (rooms.ROOT / "docs" / "architecture.md").read_text()
