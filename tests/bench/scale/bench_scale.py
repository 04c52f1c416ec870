"""The real operator under thousands of jobs, against a real API server: what it takes, and how long everything takes.

    python tests/bench/scale/bench_scale.py [--scenario burst,rest] [--jobs 3000] [--line 10000] [--ranks 2048]
                                            [-o FILE.json]

The cluster has 512 nodes of 8 GPUs that are only objects: no kubelet and no scheduler takes
processor time. Beside the operator works the API server with its etcd, and this program, which
creates, watches and probes.

    large     one job of thousands of ranks
    gpt3      examples/gpt3-3d.yaml: 512 pods of 8 GPUs, all there are
    burst     jobs of two stages created at once, more than there is room for
    rest      after `burst`, and nothing happens; then with a quarter of the jobs training and asked for their progress
    limit     a bare client that writes what the operator wrote in `burst` and `large`, as fast as it can
    kueue     Kueue's manager, admitting as many jobs
    more      one more job, in a cluster of a hundredth, a tenth, and all of the line's jobs, most of which wait
    head      running jobs of the whole line go, one after another, and the first that waits follows
    restart   the operator starts upon the whole line
    storms    nodes go and come, a thousand pods are deleted, every watch is cut; and a bare client that writes what the
              operator writes for jobs whose pods were deleted

Ends with 1 if a figure misses its bound, which holds for the default sizes on a quiet machine of
two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import bare
import crowd
import line
import quota_peer
from large import gpt3, large
from storms import NUM_PODS, storms
from world import STAGES, operator, world

SCENARIOS = ("large", "gpt3", "burst", "rest", "limit", "kueue", "more", "head", "restart", "storms")
STEPS = (0.01, 0.1, 1.0)  # of the line, in which one more job is looked at
AT_MOST = {
    "large": {"let_go_s": 10.0, "healthz_p99_s": 0.1},
    "gpt3": {
        "let_go_s": 10.0,
        "healthz_p99_s": 0.1,
        "gpus_short": 0,
        "nodes_short": 0,
        "status_kib": 1024.0,
        "plan_kib": 1024.0,
    },
    "burst": {"not_let_go": 0, "let_go_s": 100.0, "not_told": 0, "healthz_p99_s": 0.1},
    "rest": {"operator_cores": 0.05},
    "rest, some training": {"operator_cores": 0.05},
    "more, growth": {"operator_s_a_job": 1.5},
    "head": {"placed_p99_s": 1.0, "out_of_turn": 0},
    "restart": {"operator_mib": 500.0, "first_decision_s": 15.0},
    "nodes not ready": {"well_s": 10.0, "healthz_max_s": 0.5},
    "nodes deleted": {"well_s": 10.0, "healthz_max_s": 0.5},
    "pods deleted": {"well_s": 10.0, "healthz_max_s": 0.5},
    "watches cut": {"well_s": 10.0, "healthz_max_s": 0.5},
}
AT_LEAST = {"burst": {"share_of_limit": 0.8}, "pods deleted": {"share_of_limit": 0.8}}
_LIMITED = frozenset({"let_go_s", "well_s"})  # what may take longer where the API server is the limit

Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is asked for, and what was found so far."""

    scenarios: frozenset[str]
    num_jobs: int
    num_in_line: int
    num_ranks: int
    output: Path | None
    found: dict[str, Figures] = field(default_factory=dict)

    async def run(self) -> None:
        if "large" in self.scenarios:
            async with world() as here, operator(here) as running:
                await self._take("large", large(here, running, self.num_ranks))
        if "gpt3" in self.scenarios:
            async with world() as here, operator(here) as running:
                await self._take("gpt3", gpt3(here, running))
        if self.scenarios & {"burst", "rest"}:
            await self._crowd()
        if "limit" in self.scenarios:
            await self._take("limit", bare.limit(self.num_jobs))
            await self._take("large, limit", bare.large_limit(self.num_ranks))
            self._compare()
        if "kueue" in self.scenarios:
            await self._take("kueue", quota_peer.admit(self.num_jobs))
        if self.scenarios & {"more", "head", "restart", "storms"}:
            await self._line()

    async def _crowd(self) -> None:
        async with world() as here, operator(here) as running:
            await self._take("burst", crowd.burst(here, running, self.num_jobs))
            if "rest" in self.scenarios:
                await self._take("rest", crowd.rest(running))
                await self._take("rest, some training", crowd.rest_training(here, running))

    async def _line(self) -> None:
        async with line.line() as crowded:
            if "more" in self.scenarios:
                for step in STEPS[:-1]:
                    await crowded.grow(int(self.num_in_line * step))
                    await self._more(crowded)
            await crowded.grow(self.num_in_line)
            if "more" in self.scenarios:
                await self._more(crowded)
                self._grow()
            if "restart" in self.scenarios:
                await self._take("restart", line.restart(crowded))
                await crowded.without_added()
            if "head" in self.scenarios:
                async with operator(crowded.here) as running:
                    await self._take("head", line.head(crowded, running))
            if "storms" in self.scenarios:
                async for kind, figures in storms(crowded):
                    await self._take(kind, figures)
        if "storms" in self.scenarios:
            await self._take("pods deleted, limit", bare.restart_limit(NUM_PODS // STAGES))
            self._compare()

    async def _more(self, crowded: line.Line) -> None:
        async with operator(crowded.here) as running:
            await self._take(f"more, {len(crowded.here.board.jobs)} jobs", line.one_more(crowded, running))
        await crowded.without_added()

    async def _take(self, scenario: str, figures: Awaitable[Figures]) -> None:
        """Wait for the figures of a scenario, show and keep them; one that takes too long leaves none."""
        try:
            self.found[scenario] = {**await figures, "load": os.getloadavg()[0]}
        except TimeoutError as error:
            print(f"{scenario}: {error}", flush=True)
            self.found[scenario] = {}
        self._show(scenario)

    def _compare(self) -> None:
        """Lay the operator beside the API server's limit, where both were measured."""
        burst, limit = self.found.get("burst"), self.found.get("limit")
        if burst and limit:
            burst["share_of_limit"] = burst["jobs_per_s"] / limit["jobs_per_s"]
            self._show("burst")
        for scenario, figure in (("large", "let_go_s"), ("pods deleted", "well_s")):
            figures, limit = self.found.get(scenario), self.found.get(f"{scenario}, limit")
            if figures and limit:
                figures["share_of_limit"] = limit["took_s"] / figures[figure]
                self._show(scenario)

    def _grow(self) -> None:
        """Lay the price of one more job in the largest cluster beside that in the smallest."""
        prices = [figures for scenario, figures in self.found.items() if scenario.startswith("more,")]
        if all(prices):
            figures = ("operator_s_a_job", "let_go_median_s")
            self.found["more, growth"] = {name: prices[-1][name] / prices[0][name] for name in figures}
            self._show("more, growth")

    def _show(self, scenario: str) -> None:
        figures = self.found[scenario]
        print(f"\n{scenario}")
        for name, value in figures.items():
            text = str(value) if isinstance(value, int) else f"{value:.4g}"
            print(f"  {name:20} {text:>10}   {_bound(scenario, name)}")
        sys.stdout.flush()
        if self.output:
            self.output.write_text(json.dumps(self.found, indent=2) + "\n")

    def missed(self) -> Iterator[str]:
        """Name the bounds that were missed, but for times that the API server sets."""
        for scenario, figures in self.found.items():
            at_most, at_least = AT_MOST.get(scenario, {}), AT_LEAST.get(scenario, {})
            is_limited = all(figures.get(name, 0.0) >= bound for name, bound in at_least.items()) and bool(at_least)
            for name, bound in at_most.items():
                if not figures.get(name, float("inf")) <= bound and not (is_limited and name in _LIMITED):
                    yield f"{scenario}: {name}"


def _bound(scenario: str, figure: str) -> str:
    for words, bounds in (("at most", AT_MOST), ("at least", AT_LEAST)):
        bound = bounds.get(scenario, {}).get(figure)
        if bound is not None:
            return f"{words} {bound:g}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", type=_scenarios, default=frozenset(SCENARIOS), help="some, joined by commas")
    parser.add_argument("--jobs", type=int, default=3000, help="of burst, rest, limit and kueue")
    parser.add_argument("--line", type=int, default=10_000, help="jobs of more, head, restart and storms")
    parser.add_argument("--ranks", type=int, default=2048, help="of large")
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    bench = Bench(
        scenarios=given.scenario,
        num_jobs=given.jobs,
        num_in_line=given.line,
        num_ranks=given.ranks,
        output=given.output,
    )
    asyncio.run(bench.run())
    missed = list(bench.missed())
    print("\n" + (f"missed: {', '.join(missed)}" if missed else "all bounds hold"))
    sys.exit(bool(missed))


def _scenarios(text: str) -> frozenset[str]:
    wanted = frozenset(text.split(","))
    if unknown := wanted.difference(SCENARIOS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: use some of {', '.join(SCENARIOS)}")
    return wanted


if __name__ == "__main__":
    main()
