"""How fast an operator answers its kubelet: its own process asks /healthz every 50 ms, whatever became of the last.

A question is sent when it is due, also while earlier ones wait for their answer, so that a pause
of a second counts as the twenty probes that fell into it. Run as a program it writes two lines a
probe: one with its number and the moment it was sent, and later one that repeats them with the
seconds it took and the answer's status. Moments are those of `time.monotonic`, which all processes
of a machine share.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.local.processes import Process

INTERVAL_S = 0.05
LIMIT_S = 10.0  # a probe without an answer by then has failed, and counts as this long
_OK, _NO_ANSWER = 200, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The probes sent in a span of time."""

    seconds: tuple[float, ...]
    num_failed: int  # without an answer, or with another than 200

    @property
    def figures(self) -> dict[str, float]:
        shares = {"healthz_p50_s": 0.5, "healthz_p99_s": 0.99, "healthz_max_s": 1.0}
        latencies = {name: percentile(self.seconds, share) for name, share in shares.items()}
        return {"probes": len(self.seconds), "probes_failed": self.num_failed, **latencies}


class Probe:
    """Asks for as long as the block lasts."""

    def __init__(self, port: int, folder: Path) -> None:
        self._log = folder / f"probe-{port}.log"
        self._process = Process("probe", [sys.executable, __file__, port], log=self._log)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    async def answers(self, since: float, until: float) -> Answers:
        """Return the probes sent between two moments, once all of them have ended."""
        while True:
            await asyncio.sleep(2 * INTERVAL_S)
            if not self._process.alive:
                raise RuntimeError(f"the probe ended: {self._process.tail()}")
            sent, ended = self._read()
            wanted = {number for number, moment in sent.items() if since <= moment <= until}
            if wanted <= ended.keys():
                break
        if not wanted:
            raise RuntimeError(f"no probe was sent in {until - since:.2f} s")
        found = [ended[number] for number in sorted(wanted)]
        return Answers(seconds=tuple(took for took, _ in found), num_failed=sum(status != _OK for _, status in found))

    def _read(self) -> tuple[dict[int, float], dict[int, tuple[float, int]]]:
        sent: dict[int, float] = {}
        ended: dict[int, tuple[float, int]] = {}
        for line in self._log.read_text().splitlines():
            number, moment, *end = line.split()
            sent[int(number)] = float(moment)
            if end:
                ended[int(number)] = float(end[0]), int(end[1])
        return sent, ended


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


async def ask_on(port: int) -> None:
    """Ask for ever."""
    number, due, running = 0, time.monotonic(), set[asyncio.Task[None]]()
    while True:
        task = asyncio.create_task(_ask(port, number))
        running.add(task)
        task.add_done_callback(running.discard)
        number, due = number + 1, due + INTERVAL_S
        await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _ask(port: int, number: int) -> None:
    sent = time.monotonic()
    print(number, sent, flush=True)
    try:
        async with asyncio.timeout(LIMIT_S):
            status = await _status(port)
        took_s = time.monotonic() - sent
    except (OSError, TimeoutError, ValueError, IndexError):
        status, took_s = _NO_ANSWER, LIMIT_S
    print(number, sent, took_s, status, flush=True)


async def _status(port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n")
        return int((await reader.read()).split(maxsplit=2)[1])
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(ask_on(int(sys.argv[1])))
