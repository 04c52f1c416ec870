"""What a served model gives at 1, 4 and 16 requests at once, beside what it predicted before it began.

    make serve                                        # or `pipelinejob serve FILE`, in another terminal
    python tests/bench/serving/bench_serving.py [--url http://127.0.0.1:8000] [--model smollm2] [--rounds 3]

Each request has a prompt of its own of some 64 tokens, and asks for 64. Rounds alternate between
the numbers of requests; medians are printed as JSON, with the predictions that the service tells
in /metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from statistics import median
from typing import Any

import aiohttp

TOKENS = 64
AT_ONCE = (1, 4, 16)
NAMES = ("time_to_first_token_seconds", "time_per_token_seconds", "tokens_per_second")


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    async with aiohttp.ClientSession(given.url, timeout=aiohttp.ClientTimeout(total=600)) as client:
        rounds = [
            {number: await measured(client, given.model, number, salt=salt) for number in AT_ONCE}
            for salt in range(given.rounds)
        ]
        async with client.get("/metrics") as told:
            metrics = await told.text()
    rows = [
        {
            "requests": number,
            **{
                name: {
                    "predicted": predicted(metrics, name, number),
                    "measured": round(median(each[number][name] for each in rounds), 3),
                }
                for name in NAMES
            },
        }
        for number in AT_ONCE
    ]
    print(json.dumps(rows, indent=1))


async def measured(client: aiohttp.ClientSession, model: str, number: int, *, salt: int) -> dict[str, float]:
    """Ask so often at once; return mean times in seconds, and all tokens a second."""
    began = time.perf_counter()
    answers = await asyncio.gather(*(ask(client, model, f"{salt}.{place} ") for place in range(number)))
    took_s = time.perf_counter() - began
    per_token = [(end - first) / (TOKENS - 1) for first, end in answers]
    return {
        "time_to_first_token_seconds": sum(first for first, _ in answers) / number,
        "time_per_token_seconds": sum(per_token) / number,
        "tokens_per_second": number * TOKENS / took_s,
    }


async def ask(client: aiohttp.ClientSession, model: str, word: str) -> tuple[float, float]:
    """Return the seconds until the first and the last token of one answer."""
    wanted: dict[str, Any] = {
        "model": model, "prompt": word * 15, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0, "stream": True,
    }  # fmt: skip
    began, first = time.perf_counter(), 0.0
    async with client.post("/v1/completions", json=wanted) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {") and not first:
                first = time.perf_counter() - began
    return first, time.perf_counter() - began


def predicted(metrics: str, name: str, number: int) -> float:
    """Read what the service predicts of this."""
    found = re.search(
        rf'^pipelinejob_serving_predicted_{name}{{[^}}]*requests="{number}"}} (\S+)$', metrics, re.MULTILINE
    )
    assert found is not None, f"{name} of {number} requests is not in /metrics"
    return round(float(found[1]), 3)


if __name__ == "__main__":
    asyncio.run(main())
