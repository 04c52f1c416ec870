"""What transformers gives with the same weights: `generate` in one process, and its own pipeline over gloo.

    python tests/bench/serving/serving_peers.py FOLDER [--stages 3] [--rounds 3]
                                                [--url http://127.0.0.1:8000 --model smollm2]

FOLDER is the model's (`python tests/smollm2.py` prints one). Requests are those of bench_serving.py: some 64 tokens in,
64 out, 1, 4 and 16 at once. To both peers they come as one batch, which is the best that they can have: nobody comes
later, all are equally long. Rounds alternate between the candidates, ours only where `--url` is given; while one is
measured, the others wait. Medians are printed as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench_serving import AT_ONCE, TOKENS, measured


def main() -> None:
    """Measure in turns, and print; or, as one of a pipeline's ranks, serve what is asked on standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--url")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        _rank(given.folder)
        return
    peers = {"generate": Peer(given.folder, 1), "pipeline": Peer(given.folder, given.stages)}
    rates: dict[str, dict[int, list[float]]] = {}
    for salt in range(given.rounds):
        for number in AT_ONCE:
            if given.url:
                found = asyncio.run(_ours(given.url, given.model, number, salt))
                rates.setdefault("ours", {}).setdefault(number, []).append(found)
            for name, peer in peers.items():
                rates.setdefault(name, {}).setdefault(number, []).append(peer.rate(number, salt))
    for peer in peers.values():
        peer.end()
    told: dict[str, Any] = {
        name: {number: round(median(each), 1) for number, each in by.items()} for name, by in rates.items()
    }
    print(json.dumps({"tokens_per_second": told, "load_average": os.getloadavg()}, indent=1))


async def _ours(url: str, model: str, number: int, salt: int) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        return (await measured(client, model, number, salt=salt))["tokens_per_second"]


class Peer:
    """Processes of transformers, which answer a batch whenever they are asked to, and wait otherwise."""

    def __init__(self, folder: Path, ranks: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self._ranks = [
            subprocess.Popen(
                [sys.executable, __file__, str(folder), "--rank"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **common, "RANK": str(k), "LOCAL_RANK": str(k), "OMP_NUM_THREADS": str(threads)},
            )
            for k in range(ranks)
        ]

    def rate(self, number: int, salt: int) -> float:
        """Return the tokens a second of so many requests."""
        for each in self._ranks:
            assert each.stdin is not None
            each.stdin.write(f"{number} {salt}\n")
            each.stdin.flush()
        said = [(each.stdout.readline() if each.stdout else "") for each in self._ranks]
        return number * TOKENS / float(said[-1])

    def end(self) -> None:
        """Let the processes end."""
        for each in self._ranks:
            assert each.stdin is not None
            each.stdin.close()
            each.wait(60)


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
