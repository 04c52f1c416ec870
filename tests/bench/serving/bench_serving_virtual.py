"""How busy four stages are whose compute is a sleep, so that they need no processors: in groups, and as one batch.

    python tests/bench/serving/bench_serving_virtual.py [--requests 16 32 64] [--stages 4] [--pass-ms 20] [--share]

Each pass takes a stage `--pass-ms`, whatever is in it, as decoding does that reads weights.
Requests come at once, with 16 tokens in and 64 out. The stages are threads with sockets between
them, the scheduler and the engine the real ones. What is predicted is played by the same
scheduler, with the same costs. Prints JSON.

With `--share` a pass takes so much of a processor instead, and all stages have one, the
interpreter's lock. Seconds are the processor's then, so that other work on the machine counts for
nothing; first token, time per token and tokens a second are told as predicted for stages that
share it, as measured, and as predicted for stages that share none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.passes import Row
from pipelinejob.serving.predict import Asked, predict
from pipelinejob.serving.scheduler import Limits
from support.serving.serving_chains import HANG_S, Told, serving

IN, OUT, WIDTH = 16, 64, 8


@dataclass
class Timed(Told):
    """What an engine said of one answer, and when, in the seconds of a processor."""

    times_s: list[float] = field(default_factory=list)

    def __call__(self, said: Any) -> None:
        self.times_s.append(time.process_time())
        super().__call__(said)


class Burning:
    """A stage that keeps a processor busy; the last one's logits choose token 1."""

    def __init__(self, pass_s: float, *, is_last: bool) -> None:
        self._pass_s = pass_s
        self._after = Sleeping(0.0, is_last=is_last)

    def run(self, rows: tuple[Row, ...], received: torch.Tensor | None) -> torch.Tensor:
        """Compute for so long."""
        end = time.thread_time() + self._pass_s
        while time.thread_time() < end:
            pass
        return self._after.run(rows, received)


class Sleeping:
    """A stage that sleeps; the last one's logits choose token 1."""

    def __init__(self, pass_s: float, *, is_last: bool) -> None:
        self._pass_s = pass_s
        self._is_last = is_last

    def run(self, rows: tuple[Row, ...], received: torch.Tensor | None) -> torch.Tensor:
        """Sleep, and return what the next stage is sent."""
        time.sleep(self._pass_s)
        if self._is_last:
            return torch.tensor([[0.0, 1.0]]).expand(len(rows), 2)
        return torch.zeros(len(rows), len(rows[0].tokens), WIDTH)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--pass-ms", type=float, default=20.0)
    parser.add_argument("--share", action="store_true")
    given = parser.parse_args()
    if given.share:
        shared = [sharing(requests, given.stages, given.pass_ms / 1000) for requests in given.requests]
        print(json.dumps({"rows": shared, "load_average": os.getloadavg()[0]}, indent=1))
        return
    rows = []
    for requests in given.requests:
        for name, groups in (("groups", given.stages + 1), ("one batch", 1)):
            size = -(-requests // groups) if groups > 1 else requests
            rows.append(
                {"requests": requests, "as": name}
                | measured(requests, given.stages, given.pass_ms / 1000, groups, size)
            )
    print(json.dumps({"rows": rows, "load_average": os.getloadavg()[0]}, indent=1))


def sharing(requests: int, stages: int, pass_s: float) -> dict[str, Any]:
    """Return times and tokens a second of stages on one processor, in its own seconds."""
    size = -(-requests // (stages + 1))
    room = {"groups": stages + 1, "group_size": size, "chunk_tokens": IN, "block": 16, "num_blocks": 5 * requests + 16}
    asked, limits = [Asked(prompt=IN, new=OUT)] * requests, Limits(**room, max_waiting=1000)
    costs = [PassCost(fixed_s=pass_s, token_s=0.0)] * stages
    one, own = (predict(asked, limits, costs, processors=number) for number in (1, None))
    computes = [Burning(pass_s, is_last=stage == stages - 1) for stage in range(stages)]
    with serving(computes, **room) as chain:
        while not chain.engine.is_ready:
            time.sleep(0.01)
        began = time.process_time()
        told = [Timed() for _ in range(requests)]
        for number, each in enumerate(told):
            chain.submit([number] * IN, OUT, told=each)
        for each in told:
            assert each.done.wait(HANG_S)
        took_s = time.process_time() - began
    found = {
        "first_token_s": mean(each.times_s[0] - began for each in told),
        "per_token_s": mean((each.times_s[-1] - each.times_s[0]) / (OUT - 1) for each in told),
        "tokens_per_s": requests * OUT / took_s,
    }
    return {
        "requests": requests,
        **{
            name: {
                "predicted": round(getattr(one, name), 3),
                "measured": round(value, 3),
                "if_none_shared": round(getattr(own, name), 3),
            }
            for name, value in found.items()
        },
    }


def measured(requests: int, stages: int, pass_s: float, groups: int, size: int) -> dict[str, Any]:
    """Return utilization and tokens a second, as predicted and measured."""
    room = {"groups": groups, "group_size": size, "chunk_tokens": IN, "block": 16, "num_blocks": 5 * requests + 16}
    cost = PassCost(fixed_s=pass_s, token_s=0.0)
    found = predict([Asked(prompt=IN, new=OUT)] * requests, Limits(**room, max_waiting=1000), [cost] * stages)
    computes = [Sleeping(pass_s, is_last=stage == stages - 1) for stage in range(stages)]
    with serving(computes, **room) as chain:
        while not chain.engine.is_ready:
            time.sleep(0.01)
        began = time.perf_counter()
        told = [chain.submit([number] * IN, OUT) for number in range(requests)]
        for each in told:
            assert each.done.wait(HANG_S)
        took_s = time.perf_counter() - began
        time.sleep(1.0)  # for the stages' last beats
        busy = [reading.busy_s / took_s for _, reading in sorted(chain.engine.readings().items())]
    return {
        "utilization_predicted": [round(each, 3) for each in found.utilization],
        "utilization": [round(each, 3) for each in busy],
        "tokens_per_s_predicted": round(found.tokens_per_s, 1),
        "tokens_per_s": round(requests * OUT / took_s, 1),
    }


if __name__ == "__main__":
    main()
