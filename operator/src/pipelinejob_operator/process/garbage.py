"""Python's search for garbage in cycles, kept from holding the event loop.

What caches hold is JSON: millions of small objects, none in a cycle. By Python's defaults a full
search looks at all of them, again and again while they are read (20,000 pods: 1 s each, and seven
times as long to read them).
"""

import asyncio
import gc

# Young objects are searched as often as they come, all objects practically never by themselves.
_THRESHOLDS = (10_000, 10, 1_000)
_INTERVAL_S = 3600.0


def search_seldom() -> None:
    """Search the young objects only; to be called when the process begins."""
    gc.set_threshold(*_THRESHOLDS)


def pass_over_what_is_held() -> None:
    """Leave all that is held now out of all later searches; to be called when the caches are filled."""
    gc.freeze()


async def search_hourly() -> None:
    """Search among all that came since, once an hour, for ever."""
    while True:
        await asyncio.sleep(_INTERVAL_S)
        gc.collect()
