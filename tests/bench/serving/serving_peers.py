"""What transformers gives with the same weights: `generate` in one process, and its own pipeline over gloo.

    python tests/bench/serving/serving_peers.py FOLDER [--stages 3] [--url http://127.0.0.1:8000 --model smollm2]
        [--rounds 3] [--at-once 1 4 16] [--limit 120]

FOLDER is the model's (`python tests/smollm2.py` prints one). Requests are those of bench_serving.py: some 64 tokens in,
64 out, so many at once. To both peers they come as one batch, which is the best that they can have: nobody comes
later, all are equally long. Rounds alternate between the candidates, ours only where `--url` is given; while one is
measured, the others wait. A candidate that has not answered within `--limit` seconds is ended, and begins anew for the
next round; its row says how many of its rounds did not finish, and the median is of those that did. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from bench_serving import AT_ONCE, TOKENS, measured

_START_S = 300.0  # to import torch and read the weights, on a busy machine


def main() -> None:
    """Measure in turns, and print; or, as one of a pipeline's ranks, serve what is asked on standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--url")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, nargs="+", default=list(AT_ONCE))
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a round of one candidate may take")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        _rank(given.folder)
        return
    peers = {"generate": Peer(given.folder, 1), "pipeline": Peer(given.folder, given.stages)}
    candidates: dict[str, Callable[[int, int], float]] = {
        name: lambda number, salt, peer=peer: peer.rate(number, salt, limit_s=given.limit)
        for name, peer in peers.items()
    }
    if given.url:
        candidates["ours"] = lambda number, salt: asyncio.run(_ours(given, number, salt))
    rows = {(name, number): Row() for name in candidates for number in given.at_once}
    try:
        for salt in range(given.rounds):
            for number in given.at_once:
                for name, rate in candidates.items():
                    rows[name, number].measure(lambda rate=rate, number=number, salt=salt: rate(number, salt))
    finally:
        for peer in peers.values():
            peer.end()
    told = {name: {number: rows[name, number].told(given.limit) for number in given.at_once} for name in candidates}
    print(json.dumps({"tokens_per_second": told, "load_average": os.getloadavg()}, indent=1))


@dataclass
class Row:
    """What one candidate gave at one load: tokens a second of the rounds that ended in time, and how many did not."""

    rates: list[float] = field(default_factory=list)
    unfinished: int = 0

    def measure(self, rate: Callable[[], float]) -> None:
        """Measure one round."""
        try:
            self.rates.append(rate())
        except TimeoutError:
            self.unfinished += 1

    def told(self, limit_s: float) -> float | str | dict[str, Any]:
        """Return the median, or say that no round, or not each, ended in time."""
        rounds = len(self.rates) + self.unfinished
        if not self.unfinished:
            return round(median(self.rates), 1)
        said = f"{self.unfinished} of {rounds} rounds did not finish within {limit_s:g} s"
        return {"median_of_the_rest": round(median(self.rates), 1), "but": said} if self.rates else said


async def _ours(given: argparse.Namespace, number: int, salt: int) -> float:
    async with asyncio.timeout(given.limit), aiohttp.ClientSession(given.url) as client:
        return (await measured(client, given.model, number, salt=salt))["tokens_per_second"]


class Peer:
    """Processes of transformers, which answer a batch whenever they are asked to, and wait otherwise."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self._folder = folder
        self._num_ranks = ranks
        self._ranks: list[subprocess.Popen[str]] = []

    def rate(self, number: int, salt: int, *, limit_s: float) -> float:
        """Return the tokens a second of so many requests. Raises TimeoutError where they take longer."""
        if not self._ranks:
            self._start()
        for each in self._ranks:
            assert each.stdin is not None
            each.stdin.write(f"{number} {salt}\n")
            each.stdin.flush()
        return number * TOKENS / float(self._said(limit_s))

    def end(self) -> None:
        """End the processes, whatever they do."""
        for each in self._ranks:
            each.kill()
            each.wait()
        self._ranks = []

    def _start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        threads = max(1, len(os.sched_getaffinity(0)) // self._num_ranks)
        common = {"WORLD_SIZE": str(self._num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self._ranks = [
            subprocess.Popen(
                [sys.executable, __file__, str(self._folder), "--rank"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **common, "RANK": str(k), "LOCAL_RANK": str(k), "OMP_NUM_THREADS": str(threads)},
            )
            for k in range(self._num_ranks)
        ]
        self._said(_START_S)

    def _said(self, limit_s: float) -> str:
        """Return the line that the last rank says, once all have said one; end them all if they do not in time."""
        deadline, line = time.monotonic() + limit_s, ""
        for each in self._ranks:
            assert each.stdout is not None
            readable, _, _ = select.select([each.stdout], [], [], max(0.0, deadline - time.monotonic()))
            line = each.stdout.readline() if readable else ""
            if not line and each.poll() is not None:
                raise SystemExit(f"a rank of the peer ended with {each.returncode}; its error stands above")
            if not line:
                self.end()
                raise TimeoutError
        return line


def _rank(folder: Path) -> None:
    """Answer batches as one rank: of so many numbers as are asked for, in seconds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.distributed.configuration_utils import DistributedConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    ranks = int(os.environ["WORLD_SIZE"])
    more: dict[str, Any] = {"distributed_config": DistributedConfig(pp_size=ranks)} if ranks > 1 else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **more).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    print("ready", flush=True)
    for line in sys.stdin:
        number, salt = map(int, line.split())
        prompts = [f"{salt}.{place} " * 15 for place in range(number)]
        asked = tokenizer(prompts, return_tensors="pt", padding=True)
        began = time.perf_counter()
        with torch.inference_mode():
            answers = model.generate(**asked, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
        taken = time.perf_counter() - began
        assert answers.shape[1] - asked["input_ids"].shape[1] == TOKENS
        print(taken, flush=True)


if __name__ == "__main__":
    main()
