"""A served model under full load while clients leave and stages are killed: no answer is wrong, or lost silently.

    python tests/bench/serving/soak_serving.py [--requests 300] [--at-once 64] [--kills 2] [--wedges 1] [--leave 0.1]

A tiny model, trained nowhere, is saved as a checkpoint and served from it by `pipelinejob serve`
over three stages, processes of their own. Of the clients a share leaves in the midst of a stream;
every so often a stage is killed (the first one every fourth time), or a later one wedged: stopped,
so that it keeps its connections and says nothing. How long until that is noticed and named stands
in the result; then the stage goes on. Each answer must be the unsplit model's; one that is
refused, or cut off with its connection, is asked again, and counted. In the end nothing may be in
work, in line or in the cache. Prints JSON, with what is `amiss`; ends with 1 if anything is.

With `--requests 10000 --kills 20 --wedges 5` it is the whole soak; with `--kills 0 --wedges 0 --leave 0 --at-once 1000`
the crowd of a thousand connections.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipelinejob.base import names
from pipelinejob.contract.trained import Trained
from pipelinejob.spec.job import Data, Model, Training
from pipelinejob_trainer.sample import Request, generate
from support.local.local_cli import Run
from support.serving.serving_clients import ask
from support.training.saved_models import moved, saved, whole

GPT = {"gpt": {"numLayers": 4, "hiddenSize": 32, "numHeads": 4}}
LENGTH, NEW, PROMPTS, PORT = 64, 24, 40, 8791
_LONGEST_S = 30.0  # for a wedged stage to be named
_RETRIED = {0, 429, 503}  # 0: the connection ended before a status came


def main() -> None:
    """Serve, ask, kill, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("requests", 300), ("at-once", 64), ("kills", 2), ("wedges", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--leave", type=float, default=0.1, help="share of clients that leave in the midst")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        expected, run = _serving(Path(folder), waiting=given.at_once)
        try:
            _until_ready(run)
            found = asyncio.run(Soak(given, expected, run).go())
        finally:
            run.interrupt()
            run.wait(60)
    problems = amiss(found, given)
    print(json.dumps({**found, "amiss": problems}, indent=1))
    sys.exit(1 if problems else 0)


def amiss(found: Mapping[str, Any], given: argparse.Namespace) -> list[str]:
    """Return what is not as it must be."""
    answered, noticed = found.get("right", 0) + found.get("left", 0), found["wedged_stage_noticed_after_s"]
    checks = {
        f"{given.requests - answered} requests got no right answer": answered != given.requests,
        f"{found['left_in_work_line_cache']} are left in work, in line and in the cache": (
            found["left_in_work_line_cache"] != [0.0, 0.0, 0.0]
        ),
        f"{found.get('kills', 0)} stages were killed": found.get("kills", 0) != given.kills,
        f"{len(noticed)} wedged stages were named": len(noticed) != given.wedges,
    }
    return [words for words, holds in checks.items() if holds]


def _serving(folder: Path, *, waiting: int) -> tuple[dict[str, str], Run]:
    """Return what each prompt's answer is, and the command that serves."""
    trained = Trained(
        model=Model.model_validate(GPT),
        data=Data(paths=("unused",), sequence_length=LENGTH),
        training=Training(steps=1, seed=3),
    )
    part = moved(whole(trained))
    saved(folder / "saved", part, 3)
    prompts = [f"def f{number}(" for number in range(PROMPTS)]
    asked = [Request(prompt=prompt, tokens=NEW, seed=0, temperature=0) for prompt in prompts]
    expected = {each.prompt: generate(part, each, context=LENGTH) for each in asked}
    serving = {"fromCheckpoint": True, "port": PORT, "cacheTokens": 8192, "chunkTokens": 16, "maxWaiting": waiting}
    spec = {"mode": "Serve", "model": GPT, "parallelism": {"pipeline": 3}, "device": "cpu", "serving": serving}
    manifest = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "soak"}, "spec": spec}
    (folder / "soak.yaml").write_text(yaml.safe_dump(manifest))
    run = Run(
        folder / "soak.yaml",
        folder / "run",
        "--checkpoints",
        str(folder / "saved"),
        command="serve",
        OMP_NUM_THREADS="1",
    )
    return expected, run


def _get(path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def _until_ready(run: Run) -> None:
    def is_ready() -> bool:
        try:
            return _get("/readyz").startswith("ok")
        except OSError:
            return False

    run.until(is_ready)


class Soak:
    """The load, and what became of it."""

    def __init__(self, given: argparse.Namespace, expected: dict[str, str], run: Run) -> None:
        self._given = given
        self._expected = expected
        self._run = run
        self._dice = random.Random(7)
        self._counts: Counter[str] = Counter()
        self._left = iter(range(given.requests))
        self._done = 0
        self._noticed_s: list[float] = []

    async def go(self) -> dict[str, Any]:
        """Ask all; return the counts."""
        began = time.monotonic()
        killing = asyncio.create_task(self._kill())
        await asyncio.gather(*(self._client() for _ in range(self._given.at_once)))
        took_s = time.monotonic() - began
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
        return {
            "requests": self._given.requests,
            "at_once": self._given.at_once,
            **self._counts,
            "seconds": round(took_s, 1),
            "wedged_stage_noticed_after_s": [round(each, 2) for each in self._noticed_s],
            "left_in_work_line_cache": await self._leaked(),
            "load_average": os.getloadavg()[0],
        }

    async def _client(self) -> None:
        for number in self._left:
            prompt = list(self._expected)[number % PROMPTS]
            leaves = 1 + number % 7 if self._dice.random() < self._given.leave else None
            while True:
                body = {"model": "soak", "prompt": prompt, "max_tokens": NEW, "temperature": 0}
                heard = await ask(f"http://127.0.0.1:{PORT}", body, leaves_after=leaves)
                if leaves is not None and heard.status == 200:
                    self._counts["left"] += 1
                    break
                if heard.is_whole:
                    self._counts["right" if heard.text == self._expected[prompt] else "wrong"] += 1
                    break
                if heard.status not in _RETRIED | {200}:
                    self._counts[f"refused with {heard.status}"] += 1
                    break
                self._counts["asked again"] += 1
                await asyncio.sleep(0.5)
            self._done += 1

    async def _kill(self) -> None:
        """Kill or wedge a stage whenever so many requests more are done."""
        faults = [*["kill"] * self._given.kills, *["wedge"] * self._given.wedges]
        self._dice.shuffle(faults)
        every = self._given.requests // (len(faults) + 1)
        for number, fault in enumerate(faults):
            while self._done < every * (number + 1):
                await asyncio.sleep(0.05)
            stage = "0" if fault == "kill" and number % 4 == 3 else str(1 + number % 2)
            await self._until_whole()
            process = (await asyncio.to_thread(self._run.stages))[stage]
            self._counts[f"{fault}s"] += 1
            if fault == "kill":
                os.kill(process, signal.SIGKILL)
            else:
                await self._wedge(stage, process)

    async def _wedge(self, stage: str, process: int) -> None:
        """Stop a stage until the first one has named it, and let it go on."""
        named, before = f"stage {stage} is lost: it said nothing", self._first_log()
        began = time.monotonic()
        os.kill(process, signal.SIGSTOP)
        try:
            while self._first_log().count(named) == before.count(named):
                if time.monotonic() - began > _LONGEST_S:
                    self._counts["wedged and never named"] += 1
                    return
                await asyncio.sleep(0.02)
            self._noticed_s.append(time.monotonic() - began)
        finally:
            os.kill(process, signal.SIGCONT)

    async def _until_whole(self) -> None:
        """Wait until all stages are there, so that the one that is killed or wedged is missed."""
        while True:
            try:
                if (await asyncio.to_thread(_get, "/readyz")).startswith("ok"):
                    return
            except OSError:
                pass
            await asyncio.sleep(0.1)

    def _first_log(self) -> str:
        return "".join(file.read_text() for file in sorted((self._run.output / "logs").glob("*-s0.*.log")))

    async def _leaked(self) -> list[float]:
        """Return what is in work, in line, and in the cache, once it is at rest."""
        gauges = ("requests_active", "requests_waiting", "cache_blocks_used")
        found: list[float] = []
        for _ in range(100):
            await asyncio.sleep(0.1)
            try:
                text = await asyncio.to_thread(_get, "/metrics")
            except OSError:
                continue
            lines = [line for line in text.splitlines() if not line.startswith("#")]
            found = [
                float(line.split()[-1])
                for name in gauges
                for line in lines
                if line.startswith(f"pipelinejob_serving_{name}{{")
            ]
            if not any(found):
                break
        return found


if __name__ == "__main__":
    main()
