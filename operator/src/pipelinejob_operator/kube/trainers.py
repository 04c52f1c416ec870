"""The ports of the trainers themselves: how far one is, and whom it is to meet; needs no right on the API server."""

import contextlib
from typing import Final

import aiohttp
from pydantic import ValidationError

from pipelinejob.base import names
from pipelinejob.contract.incarnation import GivenRank, Incarnation
from pipelinejob.contract.progress import Progress
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.making.tokens import authorization

_TIMEOUT: Final = aiohttp.ClientTimeout(total=2.0)


async def ask_progress(session: aiohttp.ClientSession, pod: Object) -> Progress | None:
    """Ask a running trainer how far it is; None if it does not answer."""
    url = _url(pod, "/progress")
    if url is None:
        return None
    try:
        async with session.get(url, timeout=_TIMEOUT) as response:
            return Progress.model_validate_json(await response.read()) if response.ok else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValidationError):
        return None


async def tell_incarnation(session: aiohttp.ClientSession, pod: Object, incarnation: Incarnation) -> None:
    """Tell a running trainer who meets next; one that does not take it will say that it still waits."""
    await _post(session, pod, "/incarnation", incarnation.model_dump_json(by_alias=True))


async def tell_rank(session: aiohttp.ClientSession, pod: Object, rank: GivenRank) -> None:
    """Tell a spare whose place it takes; one that does not hear it will say that it is still a spare."""
    await _post(session, pod, "/rank", rank.model_dump_json(by_alias=True))


async def _post(session: aiohttp.ClientSession, pod: Object, path: str, body: str) -> None:
    url = _url(pod, path)
    if url is None:
        return
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
        async with session.post(url, data=body, headers=authorization(pod), timeout=_TIMEOUT) as response:
            await response.read()


def _url(pod: Object, path: str) -> str | None:
    address = pod.get("status", {}).get("podIP")
    if not address:
        return None
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{names.PORT_METRICS}{path}"
