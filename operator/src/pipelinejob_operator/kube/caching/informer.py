"""A cache of one kind of object, kept true by list and watch, whatever the stream throws at it.

Every list is compared with what is known, so a deletion that fell into a gap is noticed; kopf 1.45
does not do that. Every odd answer (410 in any form, 404, a torn line, an ERROR event, a proxy's
HTML) means "connect again", none "exit".
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import orjson
import structlog

from pipelinejob_operator.cluster import ClusterError, ForbiddenError, Object, UnavailableError
from pipelinejob_operator.kube.api import GoneError, NotFoundError
from pipelinejob_operator.kube.caching.sharing import Shared

_log = structlog.get_logger(__name__)

_GONE = 410
_SLICE_S = 0.02  # of the event loop, which others need as well
_MAX_GONE = 10_000  # so many deletions ago, no answer to a write is still on its way


class Name(NamedTuple):
    """Where an object stands; the namespace is empty for objects that have none."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An object before and after: `old` is None for a new one, `new` for one that is gone."""

    old: Object | None
    new: Object | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds."""

    inactivity_s: float = 70.0  # bookmarks come every minute, so a stream silent for longer is dead
    server_timeout_s: int = 300  # after which the server ends a watch
    relist_s: float = 600.0  # an audit, however well the watch does; varies by a fifth
    absent_s: float = 30.0  # after which an optional kind that nobody serves is asked for again
    min_backoff_s: float = 0.1
    max_backoff_s: float = 2.0  # an API server that comes back is noticed within this


class Reader(Protocol):
    """What the informer needs of a connection."""

    async def request(self, method: str, path: str, *, query: Mapping[str, str]) -> dict[str, Any]:
        """Send one request and give the JSON of the answer."""

    def lines(self, path: str, *, query: Mapping[str, str]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a stream and give its lines."""


class StreamError(ClusterError):
    """The stream said something that no watch says."""


def without_managed_fields(item: dict[str, Any]) -> dict[str, Any]:
    """Drop the bookkeeping of server-side apply: often half of an object, never read."""
    item["metadata"].pop("managedFields", None)
    return item


class Informer:
    """All objects of one kind, as last seen. `on_change` hears of each difference once, in order."""

    def __init__(
        self,
        api: Reader,
        path: str,
        *,
        kind: str,
        api_version: str,
        on_change: Callable[[Change], None],
        on_listed: Callable[[], None] = lambda: None,
        on_restart: Callable[[], None] = lambda: None,
        project: Callable[[dict[str, Any]], dict[str, Any]] = without_managed_fields,
        timings: Timings | None = None,
        page_size: int = 250,
        label: str | None = None,
        is_optional: bool = False,
    ) -> None:
        """Prepare; `run` does the work.

        `on_listed` is called after each list that was taken up, `on_restart` for each failure,
        `project` gives what is kept of an object. With `label`, only objects that carry it are
        read. Of a kind that is optional, and that the server knows nothing of, or does not let us
        read, there are no objects.
        """
        self._api = api
        self._path = path
        self.kind = kind
        self._type = {"kind": kind, "apiVersion": api_version}
        self._on_change = on_change
        self._on_listed = on_listed
        self._on_restart = on_restart
        self._project = project
        self._timings = timings or Timings()
        self._page_size = page_size
        self._is_optional = is_optional
        self._selection = {"labelSelector": label} if label else {}
        self._objects: dict[Name, Object] = {}
        self._shared = Shared()
        self._gone: dict[str, None] = {}  # uids seen to go of late, oldest first
        self._revision = ""
        self._backoff = Backoff(self._timings.min_backoff_s, self._timings.max_backoff_s)
        self._last_sign = time.monotonic()
        self.synced = asyncio.Event()
        self.is_served = False

    # ---- what is known

    def get(self, namespace: str, name: str) -> Object | None:
        """Return one object."""
        return self._objects.get(Name(namespace, name))

    def objects(self) -> Sequence[Object]:
        """Return all objects."""
        return tuple(self._objects.values())

    def silent_s(self) -> float:
        """Return the seconds since this informer last heard something, or at least tried to."""
        return time.monotonic() - self._last_sign

    def offer(self, item: dict[str, Any]) -> None:
        """Take up what the API server answered to a write of ours, so that the next read sees it already."""
        name = _name(item)
        if item["metadata"]["uid"] not in self._gone and self._is_news(name, item):
            self._put(name, self._kept(item))

    # ---- the loop

    async def run(self) -> None:
        """List and watch, for ever."""
        relist_at = 0.0
        while True:
            self._last_sign = time.monotonic()
            try:
                if not self._revision or time.monotonic() >= relist_at:
                    await self._list()
                    relist_at = time.monotonic() + self._timings.relist_s * random.uniform(0.8, 1.2)  # noqa: S311
                await self._watch(until=relist_at)
            except (GoneError, NotFoundError, StreamError) as error:
                # What was missed is unknown: list, and compare.
                self._revision = ""
                if self._is_optional and isinstance(error, NotFoundError):
                    await self._do_without()
                else:
                    await self._recover(error)
            except ForbiddenError as error:
                await (self._do_without() if self._is_optional else self._recover(error))
            except ClusterError as error:
                await self._recover(error)

    async def _do_without(self) -> None:
        """Take it that there are none, until the kind is served."""
        for name in tuple(self._objects):
            self._drop(name)
        self.is_served = False
        self.synced.set()
        await asyncio.sleep(self._timings.absent_s)

    async def _recover(self, error: ClusterError) -> None:
        delay_s = self._backoff.next()
        _log.warning("watch restarts", kind=self.kind, error=str(error), delay_s=round(delay_s, 3))
        self._on_restart()
        await asyncio.sleep(delay_s)

    async def _list(self) -> None:
        found: dict[Name, Object] = {}
        slices = Slices()
        query = {"limit": str(self._page_size), **self._selection}
        while True:
            page = await self._api.request("GET", self._path, query=query)
            self._last_sign = time.monotonic()
            metadata = page.get("metadata")
            if not isinstance(metadata, dict) or "resourceVersion" not in metadata or "items" not in page:
                raise StreamError(f"{self._path}: the answer is no list but {str(page)[:200]}")
            for item in page["items"] or ():
                name = _name(item)
                known = self._objects.get(name)
                found[name] = known if known is not None and _is_same(item, known) else self._kept(item)
                await slices.end()
            if not metadata.get("continue"):
                break
            query = {"limit": str(self._page_size), "continue": metadata["continue"], **self._selection}
        await self._take_up(found, metadata["resourceVersion"])

    async def _take_up(self, found: Mapping[Name, Object], revision: str) -> None:
        """Bring the cache to a list, telling every difference; deletions first, so that a namesake is new."""
        slices = Slices()
        for name in tuple(self._objects):
            known = self._objects.get(name)
            # What a write of ours brought in after the list was taken is not gone.
            if known and name not in found and not _is_after(known, revision):
                self._drop(name)
            await slices.end()
        for name, item in found.items():
            if self._is_news(name, item):
                self._put(name, item)
            await slices.end()
        self._revision = revision
        self._backoff.reset()
        self.is_served = True
        self.synced.set()
        self._on_listed()

    async def _watch(self, *, until: float) -> None:
        started = time.monotonic()
        remaining_s = max(1, int(until - started))
        query = {
            **self._selection,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._revision,
            "timeoutSeconds": str(min(self._timings.server_timeout_s, remaining_s)),
        }
        heard = False
        slices = Slices()
        async with self._api.lines(self._path, query=query) as lines:
            async for line in _bounded(lines, self._timings.inactivity_s):
                self._last_sign = time.monotonic()
                self._take_event(line)
                heard = True
                self._backoff.reset()
                await slices.end()
        if not heard and time.monotonic() - started < 1:
            raise StreamError(f"{self._path}: the watch ended at once")

    def _take_event(self, line: bytes) -> None:
        event = _parse(line)
        item = event["object"]
        if event["type"] == "ERROR":
            error = GoneError if item.get("code") == _GONE else StreamError
            raise error(f"{self._path}: the watch said {str(item.get('message') or item)[:200]}")
        if event["type"] in {"ADDED", "MODIFIED"}:
            if self._is_news(_name(item), item):  # what the answer to a write of ours brought is known
                self._put(_name(item), self._kept(item))
        elif event["type"] == "DELETED":
            self._remember_gone(item)
            known = self._objects.get(_name(item))
            # A namesake made since is not the one that went.
            if known and known["metadata"]["uid"] == item["metadata"]["uid"]:
                self._drop(_name(item))
        self._revision = item["metadata"]["resourceVersion"]

    # ---- the cache

    def _kept(self, item: dict[str, Any]) -> Object:
        return self._shared.keep(self._project({**self._type, **item}))

    def _is_news(self, name: Name, item: Object) -> bool:
        known = self._objects.get(name)
        return known is None or _is_newer(item, known)

    def _put(self, name: Name, item: Object) -> None:
        known = self._objects.get(name)
        if known and known["metadata"].get("uid") != item["metadata"].get("uid"):
            self._drop(name)
            known = None
        self._objects[name] = item
        self._on_change(Change(old=known, new=item))

    def _drop(self, name: Name) -> None:
        known = self._objects.pop(name)
        self._remember_gone(known)
        self._on_change(Change(old=known, new=None))

    def _remember_gone(self, item: Object) -> None:
        self._gone[item["metadata"]["uid"]] = None
        if len(self._gone) > _MAX_GONE:
            del self._gone[next(iter(self._gone))]


class Slices:
    """Cuts long work on the event loop: `end` lets others go on when this has taken its time."""

    def __init__(self) -> None:
        self._until_s = time.monotonic() + _SLICE_S

    async def end(self) -> None:
        """End the slice, if it is over."""
        if time.monotonic() >= self._until_s:
            await asyncio.sleep(0)
            self._until_s = time.monotonic() + _SLICE_S


class Backoff:
    """Delays that double up to a cap, each cut by up to half at random, so that not all clients come back at once."""

    def __init__(self, min_s: float, max_s: float) -> None:
        self._min_s, self._max_s = min_s, max_s
        self._next_s = min_s

    def next(self) -> float:
        """Return the next delay."""
        delay_s = self._next_s
        self._next_s = min(delay_s * 2, self._max_s)
        return delay_s * random.uniform(0.5, 1)  # noqa: S311  # jitter is no secret

    def reset(self) -> None:
        """Begin with the smallest again."""
        self._next_s = self._min_s


async def _bounded(lines: AsyncIterator[bytes], inactivity_s: float) -> AsyncIterator[bytes]:
    """Yield the lines; raise when none comes for too long: a connection whose peer vanished stays open."""
    while True:
        try:
            async with asyncio.timeout(inactivity_s):
                line = await anext(lines, None)
        except TimeoutError as error:
            raise UnavailableError(f"the watch was silent for {inactivity_s:g} s") from error
        if line is None:
            return
        yield line


def _parse(line: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise StreamError(f"the watch sent no JSON: {line[:200].decode(errors='replace')}") from error
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict) or "type" not in event:
        raise StreamError(f"the watch sent no event: {line[:200].decode(errors='replace')}")
    if event["type"] != "ERROR" and "resourceVersion" not in event["object"].get("metadata", {}):
        raise StreamError(f"the watch sent an object without resourceVersion: {line[:200].decode(errors='replace')}")
    return event


def _name(item: Object) -> Name:
    metadata = item.get("metadata") or {}
    if not metadata.get("name") or not metadata.get("uid"):
        raise StreamError(f"there is an object without name or uid: {str(item)[:200]}")
    return Name(metadata.get("namespace", ""), metadata["name"])


def _is_same(item: Object, known: Object) -> bool:
    """Tell whether both are one object in one state."""
    return all(item["metadata"].get(field) == known["metadata"].get(field) for field in ("uid", "resourceVersion"))


def _is_newer(item: Object, known: Object) -> bool:
    """Tell whether `item` is a later state than `known`, or another object of that name."""
    if item["metadata"].get("uid") != known["metadata"].get("uid"):
        return True
    return _is_after(item, known["metadata"].get("resourceVersion", ""))


def _is_after(item: Object, revision: str) -> bool:
    """Compare resource versions: decimal numbers that grow, as Kubernetes has promised since 1.35."""
    own = str(item["metadata"].get("resourceVersion", ""))
    if own.isdecimal() and revision.isdecimal():
        return int(own) > int(revision)
    return own != revision
