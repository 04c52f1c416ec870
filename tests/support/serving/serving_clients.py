"""Clients of a front over plain sockets, of which a thousand are light: some read, some leave, some are slow."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Heard:
    """What a client heard: the status (0: the connection ended before one came), the text, and whether it was whole."""

    status: int = 0
    text: str = ""
    is_whole: bool = False
    error: dict[str, Any] = field(default_factory=dict)


async def ask(
    address: str,
    body: dict[str, Any],
    *,
    leaves_after: int | None = None,
    reads_after: asyncio.Event | None = None,
) -> Heard:
    """Ask for a stream of a completion, in a connection of its own.

    A client leaves after so many events, or reads nothing before something has happened.
    """
    host, _, port = address.removeprefix("http://").partition(":")
    heard = Heard()
    try:
        # A small buffer, so that one that does not read is felt.
        reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
    except OSError:
        return heard
    try:
        data = json.dumps(body | {"stream": True}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        await writer.drain()
        if reads_after is not None:
            await reads_after.wait()
        await _hear(reader, heard, leaves_after)
    except OSError:
        pass
    finally:
        writer.transport.abort() if leaves_after is not None else writer.close()
    return heard


async def _hear(reader: asyncio.StreamReader, heard: Heard, leaves_after: int | None) -> None:
    first = await reader.readline()
    heard.status = int(first.split()[1]) if first.startswith(b"HTTP/") else 0
    events = 0
    while line := await reader.readline():
        if heard.status != 200 and line.startswith(b"{"):
            heard.error = json.loads(line)["error"]
        if not line.startswith(b"data: "):
            continue
        events += 1
        if line.startswith(b"data: [DONE]"):
            heard.is_whole = True
            return
        said = json.loads(line[6:])
        if "error" in said:
            heard.error = said["error"]
            return
        heard.text += said["choices"][0]["text"]
        if leaves_after is not None and events >= leaves_after:
            return
