"""How busy four stages are whose compute is a sleep, so that they need no processors: in groups, and as one batch.

    python tests/bench/serving/bench_serving_virtual.py [--requests 16 32 64] [--stages 4] [--pass-ms 20]

Each pass takes a stage `--pass-ms`, whatever is in it, as decoding does that reads weights. Requests come at once, with
16 tokens in and 64 out. The stages are threads with sockets between them, the scheduler and the engine the real ones.
What is predicted is played by the same scheduler, with the same costs. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.passes import Row
from pipelinejob.serving.predict import Asked, predict
from pipelinejob.serving.scheduler import Limits
from support.serving.serving_chains import HANG_S, serving

IN, OUT, WIDTH = 16, 64, 8


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
    given = parser.parse_args()
    rows = []
    for requests in given.requests:
        for name, groups in (("groups", given.stages + 1), ("one batch", 1)):
            size = -(-requests // groups) if groups > 1 else requests
            rows.append(
                {"requests": requests, "as": name}
                | measured(requests, given.stages, given.pass_ms / 1000, groups, size)
            )
    print(json.dumps({"rows": rows, "load_average": os.getloadavg()[0]}, indent=1))


def measured(requests: int, stages: int, pass_s: float, groups: int, size: int) -> dict[str, Any]:
    """Return utilization and tokens a second, as predicted and measured."""
    room = {"groups": groups, "group_size": size, "chunk_tokens": IN, "block": 16, "num_blocks": 5 * requests + 16}
    cost = PassCost(fixed_s=pass_s, token_s=0.0)
    found = predict([Asked(prompt=IN, new=OUT)] * requests, Limits(**room, max_waiting=1000), [cost] * stages)
    computes = [Sleeping(pass_s, is_last=stage == stages - 1) for stage in range(stages)]
    with serving(computes, **{name: each for name, each in room.items() if name != "block"}) as chain:
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
