"""One address for several chains on this machine, as a cluster's Service is one for their first stages.

Connections are passed on as they are, each to the first stage with the fewest, of those that are
ready.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

from pipelinejob.base.errors import PipelineJobError

_PIECE_BYTES = 64 * 1024
_NOBODY = b"""HTTP/1.1 503 Service Unavailable\r
Retry-After: 2\r
Connection: close\r
Content-Length: 0\r
\r
"""


class FrontPortError(PipelineJobError):
    """The port of the common address is taken."""


@contextlib.asynccontextmanager
async def common_front(port: int, ready: Callable[[], Sequence[int]]) -> AsyncIterator[None]:
    """Listen on `port`, and pass connections on to ports of this machine: those that are `ready` when one comes.

    Raises FrontPortError where the port is taken.
    """
    front = _Front(ready)
    try:
        server = await asyncio.start_server(front.connected, port=port)
    except OSError as error:
        raise FrontPortError(
            f"spec.serving.port: {port}: {error.strerror}; free it, or choose another with --port"
        ) from error
    try:
        yield
    finally:
        server.close()
        front.close()


class _Front:
    def __init__(self, ready: Callable[[], Sequence[int]]) -> None:
        self._ready = ready
        self._open: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on; one that nobody takes is told so."""
        task = asyncio.current_task()
        assert task is not None, "a server calls this in a task"
        self._tasks.add(task)
        try:
            await self._passed_on(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one of the two has gone
        finally:
            self._tasks.discard(task)
            writer.close()

    def close(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()

    async def _passed_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in sorted(self._ready(), key=lambda each: self._open[each]):
            self._open[port] += 1
            try:
                others = await asyncio.open_connection("127.0.0.1", port)
            except OSError:  # it has just stopped
                self._open[port] -= 1
                continue
            try:
                await _joined(reader, writer, *others)
            finally:
                others[1].close()
                self._open[port] -= 1
            return
        writer.write(_NOBODY)
        await writer.drain()


async def _joined(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    others_reader: asyncio.StreamReader,
    others_writer: asyncio.StreamWriter,
) -> None:
    """Copy both ways until the server has ended its side, or the client has left."""
    asking = asyncio.create_task(_copied(reader, others_writer))
    answering = asyncio.create_task(_copied(others_reader, writer))
    try:
        await asyncio.wait((asking, answering), return_when=asyncio.FIRST_COMPLETED)
        if asking.done() and not answering.done():
            others_writer.close()  # the client has left: what is in work for it is cancelled
    finally:
        for each in (asking, answering):
            each.cancel()
        await asyncio.gather(asking, answering, return_exceptions=True)


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
