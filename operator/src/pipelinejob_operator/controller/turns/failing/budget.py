"""Budgets in time: at most so many within so many seconds, of restarts of a gang and of replacements in place alike."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from pipelinejob_operator.objects.job import parse_time


def within(times: Iterable[str], window_s: int, now: datetime) -> tuple[str, ...]:
    """Return those of these moments that still count: the window's, which ends now."""
    since = now - timedelta(seconds=window_s)
    return tuple(each for each in times if parse_time(each) > since)
