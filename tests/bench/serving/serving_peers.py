"""What transformers gives with the same weights: `generate` in one process, and its own pipeline over gloo.

    python tests/bench/serving/serving_peers.py FOLDER [--manifest examples/serve-smollm2.yaml] [--rounds 3]
        [--at-once 1 4 16 64] [--limit 120]

FOLDER is the model's (`python tests/smollm2.py` prints one). The manifest's job is served here
meanwhile, over as many stages as transformers' pipeline has. Requests are those of
bench_serving.py: some 64 tokens in, 64 out, so many at once. To both peers they come as one batch,
which is the best that they can have: nobody comes later, all are equally long. Rounds alternate
between the candidates; while one is measured, the others wait. A candidate that has not answered
within `--limit` seconds is ended, and begins anew for the next round; its row says how many of its
rounds did not finish, and the median is of those that did.

`factor` is ours over transformers' pipeline: measured, and as predicted of what our stages
measured of their passes before they served, played by our scheduler for ours, and as one batch
from stage to stage for the naive pipeline; once as the stages share this machine's processors, and
once as if each had one of its own. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import aiohttp
import yaml

from bench_serving import AT_ONCE, TOKENS, measured
from pipelinejob.contract.plan import Plan
from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.predict import Asked, best_spread, predict
from pipelinejob.serving.scheduler import Limits
from support.local.local_cli import Run

_START_S = 300.0  # to import torch and read the weights, on a busy machine
_MANIFEST = Path(__file__).parents[3] / "examples" / "serve-smollm2.yaml"


def main() -> None:
    """Measure in turns, and print; or, as one of a pipeline's ranks, serve what is asked on standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--manifest", type=Path, default=_MANIFEST)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, nargs="+", default=[*AT_ONCE, 64])
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a round of one candidate may take")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        _rank(given.folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        ours = Ours(given.manifest, given.folder, Path(scratch))
        peers = {"generate": Peer(given.folder, 1), "pipeline": Peer(given.folder, ours.num_stages)}
        try:
            told = _measured(ours, peers, given)
        finally:
            for each in (ours, *peers.values()):
                each.end()
    print(json.dumps({**told, "load_average": os.getloadavg()}, indent=1))


def _measured(ours: Ours, peers: dict[str, Peer], given: argparse.Namespace) -> dict[str, Any]:
    limit_s: float = given.limit
    candidates: dict[str, Callable[[int, int], float]] = {
        name: lambda number, salt, peer=peer: peer.rate(number, salt, limit_s=limit_s)
        for name, peer in {**peers, "ours": ours}.items()
    }
    rows = {(name, number): Row() for name in candidates for number in given.at_once}
    for salt in range(given.rounds):
        for number in given.at_once:
            for name, rate in candidates.items():
                rows[name, number].measure(lambda rate=rate, number=number, salt=salt: rate(number, salt))
    costs = ours.costs()
    factors = {}
    for number in given.at_once:
        own, naive = (rows[name, number].rates for name in ("ours", "pipeline"))
        factors[number] = {
            "measured": round(median(own) / median(naive), 2) if own and naive else None,
            "predicted": round(ours.predicted(costs, number) / naive_rate(costs, number), 2),
            "predicted, a processor a stage": round(
                ours.predicted(costs, number, shared=False) / naive_rate(costs, number), 2
            ),
        }
    return {
        "tokens_per_second": {
            name: {number: rows[name, number].told(limit_s) for number in given.at_once} for name in candidates
        },
        "predicted_tokens_per_second": {
            "pipeline": {number: round(naive_rate(costs, number), 1) for number in given.at_once},
            "ours": {number: round(ours.predicted(costs, number), 1) for number in given.at_once},
        },
        "factor": factors,
    }


def naive_rate(costs: Sequence[PassCost], number: int) -> float:
    """Return the tokens a second of one batch that goes from stage to stage, one of which computes at a time."""
    prompts_s = sum(each.seconds(rows=number, past=0, new=TOKENS) for each in costs)
    tokens_s = sum(
        each.seconds(rows=number, past=TOKENS + place, new=1) for each in costs for place in range(TOKENS - 1)
    )
    return number * TOKENS / (prompts_s + tokens_s)


class Ours:
    """The service, which begins when it is first asked."""

    def __init__(self, manifest: Path, model: Path, scratch: Path) -> None:
        self._job = yaml.safe_load(manifest.read_text())
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._arguments = (manifest, scratch / "run", "--model", str(model), "--port", str(self._port))
        self._run: Run | None = None

    @property
    def num_stages(self) -> int:
        """Count the stages that the manifest asks for."""
        return int(self._job["spec"]["parallelism"]["pipeline"])

    def rate(self, number: int, salt: int, *, limit_s: float) -> float:
        """Return the tokens a second of so many requests. Raises TimeoutError where they take longer."""
        if self._run is None:
            self._run = Run(*self._arguments, command="serve")
            self._run.until(self._is_ready, timeout_s=_START_S)
        return asyncio.run(self._rate(number, salt, limit_s))

    def costs(self) -> tuple[PassCost, ...]:
        """Return what a pass costs each stage, as it measured."""
        found: list[dict[str, float]] = [{} for _ in range(self.num_stages)]
        few: list[dict[int, float]] = [{} for _ in range(self.num_stages)]
        said = r'^pipelinejob_serving_stage_cost_seconds{[^}]*stage="(\d+)",term="(\w+)"} (\S+)$'
        for stage, term, seconds in re.findall(said, self._get("/metrics"), re.MULTILINE):
            if term.startswith("few_"):
                few[int(stage)][int(term.removeprefix("few_"))] = float(seconds)
            else:
                found[int(stage)][f"{term}_s"] = float(seconds)
        return tuple(
            PassCost(**terms, few_s=tuple(sorted(points.items()))) for terms, points in zip(found, few, strict=True)
        )

    def predicted(self, costs: Sequence[PassCost], number: int, *, shared: bool = True) -> float:
        """Return the tokens a second that the scheduler gives on stages of these costs."""
        plan = Plan.from_json((self._arguments[1] / "plan.json").read_text())
        assert plan.serving is not None, "a job that serves"
        limits = Limits.of(plan.serving, num_stages=self.num_stages)
        processors = plan.prediction.concurrency if shared else None
        spread = best_spread(limits, costs, processors=processors)
        asked = [Asked(prompt=TOKENS, new=TOKENS)] * number
        return predict(asked, limits, costs, processors=processors, spread=spread).tokens_per_s

    def end(self) -> None:
        """End the service."""
        if self._run is not None:
            self._run.interrupt()
            self._run.wait()

    def _is_ready(self) -> bool:
        try:
            return self._get("/readyz").startswith("ok")
        except OSError:
            return False

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    async def _rate(self, number: int, salt: int, limit_s: float) -> float:
        async with asyncio.timeout(limit_s), aiohttp.ClientSession(f"http://127.0.0.1:{self._port}") as client:
            found = await measured(client, self._job["metadata"]["name"], number, salt=salt)
            return found["tokens_per_second"]


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
