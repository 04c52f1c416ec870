"""Planning beside the event loop, in at most two threads.

Threads that compute share one interpreter with the loop, which waits for its turn behind each of
them (`tests/bench/cluster/bench_planning.py` has what four large plans at once cost it). Of more
jobs that are planned at once, the others wait here. Placing, which takes less and which others
wait for, does not.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_THREADS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="planning")


async def beside_the_loop(
    compute: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
) -> _Result:
    """Return what a pure computation gives; the event loop goes on meanwhile. Raises what it raises."""
    call = partial(contextvars.copy_context().run, compute, *arguments, **named)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call)
