"""How many examples a property is tried with."""

from hypothesis import settings

_NIGHTLY = 10  # times as many, and other ones each time


def examples(number: int) -> int:
    """Return the number that decides whether a change lands, or, with `make nightly`, ten times that."""
    return number * (_NIGHTLY if settings.get_current_profile_name() == "nightly" else 1)
