"""The informer's cache is true after whatever a scripted API server does to it."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from pipelinejob_operator.kube.api import Api
from pipelinejob_operator.kube.caching.informer import Change, Informer, Timings, without_managed_fields

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

QUICK = Timings(inactivity_s=60, min_backoff_s=0.01, max_backoff_s=0.02, absent_s=0.01)
# A machine that stops for a moment looks like a silent stream: only for tests that a restart too
# many does not harm.
IMPATIENT = Timings(inactivity_s=0.3, min_backoff_s=0.01, max_backoff_s=0.02)
LONG_S = 60  # more than anything here takes on the slowest machine
PATH = "/api/v1/pods"


def pod(name: str, revision: int, *, uid: str | None = None, **fields: Any) -> dict[str, Any]:
    metadata = {"namespace": "n", "name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(revision)}
    return {"metadata": metadata, **fields}


def listed(*pods: dict[str, Any], revision: int, next_page: str = "") -> Answer:
    async def answer(_: web.Request) -> web.Response:
        metadata = {"resourceVersion": str(revision), **({"continue": next_page} if next_page else {})}
        return web.json_response({"kind": "PodList", "metadata": metadata, "items": list(pods)})

    return answer


def status(code: int, body: str = '{"kind":"Status","message":"scripted"}') -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=code, text=body)

    return answer


def streamed(*lines: bytes | dict[str, Any], then: str = "hold") -> Answer:
    """Send the lines; then hold the connection open, end it, or cut it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        if then == "hold":
            await asyncio.sleep(60)
        if then == "cut":
            request.transport.abort()
        return response

    return answer


def event(kind: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": item}


class Script:
    """An API server that gives its answers one after another, and the last one of each kind for ever."""

    def __init__(self, *, lists: list[Answer], watches: list[Answer]) -> None:
        self.lists, self.watches = lists, watches
        self.queries: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        answers = self.watches if "watch" in request.query else self.lists
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return await answer(request)


class Seen:
    """A running informer and what it told."""

    def __init__(self, informer: Informer, changes: list[Change], restarts: list[None]) -> None:
        self.informer, self.changes, self.restarts = informer, changes, restarts

    def names(self) -> set[str]:
        return {item["metadata"]["name"] for item in self.informer.objects()}

    def deleted(self) -> list[str]:
        return [change.old["metadata"]["name"] for change in self.changes if change.new is None]


@contextlib.asynccontextmanager
async def watching(
    script: Script,
    timings: Timings = QUICK,
    *,
    is_optional: bool = False,
    project: Callable[[dict[str, Any]], dict[str, Any]] = without_managed_fields,
) -> AsyncIterator[Seen]:
    application = web.Application()
    application.router.add_get(PATH, script.answer)
    changes: list[Change] = []
    restarts: list[None] = []
    server = TestServer(application)
    await server.start_server()
    host = str(server.make_url("")).rstrip("/")
    async with server, Api(Configuration(host=host)) as api:
        informer = Informer(
            api,
            PATH,
            kind="Pod",
            api_version="v1",
            on_change=changes.append,
            on_restart=lambda: restarts.append(None),
            project=project,
            timings=timings,
            page_size=2,
            is_optional=is_optional,
        )
        running = asyncio.create_task(informer.run())
        try:
            yield Seen(informer, changes, restarts)
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not claim():
            await asyncio.sleep(0.005)


async def test_a_list_of_several_pages_is_read_to_its_end():
    script = Script(
        lists=[listed(pod("a", 1), pod("b", 2), revision=5, next_page="more"), listed(pod("c", 3), revision=5)],
        watches=[streamed()],
    )
    async with watching(script) as seen:
        await asyncio.wait_for(seen.informer.synced.wait(), LONG_S)

        assert seen.names() == {"a", "b", "c"}
        assert script.queries[1]["continue"] == "more"


async def test_of_an_optional_kind_that_is_not_served_there_are_none_until_it_is():
    script = Script(
        lists=[status(404), status(404), listed(pod("a", 1), revision=5), status(404), listed(revision=7)],
        watches=[status(404), streamed()],
    )
    async with watching(script, is_optional=True) as seen:
        await asyncio.wait_for(seen.informer.synced.wait(), LONG_S)
        assert seen.names() == set()

        await until(lambda: seen.deleted() == ["a"])

        assert seen.restarts == []


async def test_what_is_watched_is_added_changed_and_deleted():
    script = Script(
        lists=[listed(pod("a", 1), pod("b", 2), revision=5)],
        watches=[
            streamed(
                event("ADDED", pod("c", 6)),
                event("MODIFIED", pod("a", 7, spec={"x": 1})),
                event("DELETED", pod("b", 8)),
            )
        ],
    )
    async with watching(script) as seen:
        await until(lambda: seen.deleted() == ["b"])

        assert seen.names() == {"a", "c"}
        assert seen.informer.get("n", "a")["spec"] == {"x": 1}


async def test_managed_fields_are_dropped_and_the_kind_is_filled_in():
    item = pod("a", 1)
    item["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    async with watching(Script(lists=[listed(item, revision=5)], watches=[streamed()])) as seen:
        await asyncio.wait_for(seen.informer.synced.wait(), LONG_S)

        cached = seen.informer.get("n", "a")
        assert "managedFields" not in cached["metadata"]
        assert (cached["kind"], cached["apiVersion"]) == ("Pod", "v1")


ODD_ANSWERS = {
    "HTTP 410 on the watch": status(410),
    "HTTP 404 on the watch": status(404),
    "HTTP 503 on the watch": status(503),
    "an in-stream 410": streamed(event("ERROR", {"kind": "Status", "code": 410, "message": "too old"})),
    "an ERROR event that is not 410": streamed(event("ERROR", {"kind": "Status", "code": 500, "message": "leader"})),
    "a torn JSON line": streamed(b'{"type":"ADDED","object":{"metad\n'),
    "a torn last line": streamed(b'{"type":"ADDED","object":{"metad', then="end"),
    "HTML in the stream": streamed(b"<html>502 Bad Gateway</html>\n"),
    "JSON that is no event": streamed(b"[1, 2]\n"),
    "an event without a resource version": streamed(event("ADDED", {"metadata": {"name": "x"}})),
    "a cut connection": streamed(then="cut"),
    "a watch that ends at once": streamed(then="end"),
    "silence": streamed(),
}


@pytest.mark.parametrize("odd", ODD_ANSWERS.values(), ids=ODD_ANSWERS.keys())
async def test_the_cache_converges_after(odd):
    """Between the odd answer and the next list, one pod went and one came."""
    script = Script(
        lists=[listed(pod("a", 1), pod("b", 2), revision=5), listed(pod("a", 1), pod("c", 9), revision=10)],
        watches=[odd, streamed(event("DELETED", pod("b", 8)), event("ADDED", pod("c", 9)))],
    )
    async with watching(script, IMPATIENT) as seen:
        await until(lambda: seen.names() == {"a", "c"})

        assert seen.deleted() == ["b"]
        assert seen.restarts


@pytest.mark.parametrize("code", [404, 410, 429, 500, 503])
async def test_a_list_that_is_refused_is_asked_for_again(code):
    script = Script(lists=[status(code), status(code), listed(pod("a", 1), revision=5)], watches=[streamed()])
    async with watching(script) as seen:
        await until(lambda: seen.names() == {"a"})


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"metadata":{"resourceVersion":"1"},"items":[{"spec":{}}]}'])
async def test_an_answer_that_is_no_list_is_asked_for_again(body):
    script = Script(lists=[status(200, body), listed(pod("a", 1), revision=5)], watches=[streamed()])
    async with watching(script) as seen:
        await until(lambda: seen.names() == {"a"})


async def test_a_page_that_expired_begins_the_list_anew():
    script = Script(
        lists=[listed(pod("a", 1), revision=5, next_page="old"), status(410), listed(pod("b", 7), revision=8)],
        watches=[streamed()],
    )
    async with watching(script) as seen:
        await until(lambda: seen.names() == {"b"})

        assert "continue" not in script.queries[2]


async def test_a_cut_watch_goes_on_where_it_was_without_a_new_list():
    script = Script(
        lists=[listed(revision=5)],
        watches=[streamed(event("BOOKMARK", {"metadata": {"resourceVersion": "42"}}), then="cut"), streamed()],
    )
    async with watching(script) as seen:
        await until(lambda: len(script.queries) == 3 and bool(seen.restarts))

        assert script.queries[2]["resourceVersion"] == "42"


async def test_a_namesake_made_in_a_gap_is_told_as_one_that_went_and_one_that_came():
    script = Script(
        lists=[listed(pod("a", 1, uid="old"), revision=5), listed(pod("a", 9, uid="new"), revision=10)],
        watches=[status(410), streamed()],
    )
    async with watching(script) as seen:
        await until(lambda: len(seen.changes) == 3)

        assert [(change.old is None, change.new is None) for change in seen.changes] == [
            (True, False),
            (False, True),
            (True, False),
        ]


async def test_a_late_deletion_of_a_predecessor_leaves_its_namesake_alone():
    script = Script(
        lists=[listed(pod("a", 9, uid="new"), revision=10)],
        watches=[streamed(event("DELETED", pod("a", 11, uid="old")), event("ADDED", pod("z", 12)))],
    )
    async with watching(script) as seen:
        await until(lambda: "z" in seen.names())

        assert seen.names() == {"a", "z"}


async def test_an_answer_to_a_write_is_seen_at_once_and_not_undone_by_an_older_event():
    script = Script(lists=[listed(pod("a", 1), revision=5)], watches=[streamed()])
    async with watching(script) as seen:
        await asyncio.wait_for(seen.informer.synced.wait(), LONG_S)
        seen.informer.offer(pod("a", 7, spec={"by": "us"}))
        seen.informer.offer(pod("a", 6, spec={"by": "an older answer"}))

        assert seen.informer.get("n", "a")["spec"] == {"by": "us"}


async def test_a_state_that_is_known_is_not_read_a_second_time():
    read = []
    script = Script(
        lists=[listed(pod("a", 1), revision=5), listed(pod("a", 7), pod("b", 8), revision=9)],
        watches=[streamed(*[event("MODIFIED", pod("a", 7))] * 2, then="end")],
    )

    def project(item: dict[str, Any]) -> dict[str, Any]:
        read.append((item["metadata"]["name"], item["metadata"]["resourceVersion"]))
        return item

    async with watching(script, Timings(relist_s=0.01), project=project) as seen:
        await until(lambda: seen.names() == {"a", "b"})

        assert read == [("a", "1"), ("a", "7"), ("b", "8")]


async def test_an_answer_that_comes_after_the_deletion_raises_no_ghost():
    script = Script(lists=[listed(pod("a", 1), revision=5)], watches=[streamed(event("DELETED", pod("a", 8)))])
    async with watching(script) as seen:
        await until(lambda: seen.deleted() == ["a"])
        seen.informer.offer(pod("a", 7))

        assert seen.names() == set()


async def test_a_line_of_several_megabytes_is_an_event_like_any_other():
    big = pod("big", 6, spec={"data": "x" * 5_000_000})
    async with watching(Script(lists=[listed(revision=5)], watches=[streamed(event("ADDED", big))])) as seen:
        await until(lambda: seen.names() == {"big"})


async def test_the_audit_list_finds_what_the_watch_never_told():
    script = Script(
        lists=[listed(pod("a", 1), revision=5), listed(revision=9)],
        watches=[streamed(event("BOOKMARK", {"metadata": {"resourceVersion": "6"}}), then="end")],
    )
    async with watching(script, Timings(relist_s=0.01, min_backoff_s=0.01, max_backoff_s=0.02)) as seen:
        await until(lambda: seen.deleted() == ["a"])


async def test_a_long_list_leaves_the_event_loop_to_others():
    turns_of_others = [0]
    seen_at_change: list[int] = []

    async def others() -> None:
        while True:
            turns_of_others[0] += 1
            await asyncio.sleep(0)

    def slow(_: Change) -> None:
        seen_at_change.append(turns_of_others[0])
        time.sleep(0.001)

    pods = [pod(f"p{number}", number + 1) for number in range(200)]
    script = Script(lists=[listed(*pods, revision=500)], watches=[streamed()])
    async with watching(script) as seen:
        seen.informer._on_change = slow
        running = asyncio.create_task(others())
        await asyncio.wait_for(seen.informer.synced.wait(), LONG_S)
        running.cancel()

    # 200 objects of a millisecond each: no slice has more than a few dozen of them.
    assert len(seen_at_change) == 200
    assert max(seen_at_change.count(turns) for turns in set(seen_at_change)) < 100
