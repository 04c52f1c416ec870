"""Measures what a plan is worth over the two ways in which others divide a model: equally, and by parameters.

    python tests/bench/trainer/bench_worth.py [--rounds 3] [--layer-ms 3] [--output bench-worth.json]

A model with a heavy embedding and a heavy head has the proportions of Gemma 3 1B (26 blocks; a
vocabulary of 262,144, so that embedding and head hold as much as 11.3 blocks each, of which the
head takes as long as 11.3 blocks, and the embedding, which looks up, next to nothing). Unlike
devices go at 0.6 and 0.8 of the others' speed. The two others give each rank equally many layers,
or as equal a share of the parameters as contiguous cuts allow, under the same schedule and
micro-batches. All are played by this project's runtime on virtual compute, step by step in turns.
Ends with 1 unless the plan gives at least 1.2 times the throughput of the better of both.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from harness import TEXT, Measured, Player, laid_together, launch, load, ours, parser, take_turns, virtual_job, write
from pipelinejob.costs.layers import CostSource, LayerCost, Profile
from pipelinejob.planning.partition import partition
from pipelinejob.planning.planner import make_plan
from pipelinejob.schedules.makers.flush import one_f_one_b
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Data, Model, Parallelism, Partition, PipelineJobSpec, ScheduleSpec, Training
from pipelinejob_trainer.communication.process_groups import process_groups

MICRO_BATCHES = 24
BOUND = 1.2


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and devices. `table` is what embedding and head each hold, and what the head takes, in blocks."""

    name: str
    layer_ms: float
    blocks: int
    table: float
    speeds: tuple[float, ...]

    @property
    def ranks(self) -> int:
        return len(self.speeds)

    @property
    def layers_ms(self) -> list[float]:
        """Return each layer's forward, input gradient and weight gradient, which take equally long."""
        return [0.0, *[self.layer_ms] * self.blocks, self.layer_ms * self.table]

    @property
    def parameters(self) -> list[float]:
        return [float(self.table), *[1.0] * self.blocks, float(self.table)]

    @property
    def equal(self) -> tuple[int, ...]:
        """Return as many layers to each rank, the first ones one more where it does not come out even."""
        each, more = divmod(self.blocks + 2, self.ranks)
        return tuple(each + (rank < more) for rank in range(self.ranks))

    @cached_property
    def by_parameters(self) -> tuple[int, ...]:
        """Return each rank as equal a share of the parameters as can be: with the smallest largest share."""
        cuts = partition(self.parameters, self.ranks)
        return tuple(end - first for first, end in cuts)

    @cached_property
    def planned(self) -> tuple[int, ...]:
        return tuple(end - first for first, end in self._plan(None).cuts)

    @property
    def ways(self) -> dict[str, tuple[int, ...]]:
        return {"equal layers": self.equal, "by parameters": self.by_parameters, "planned": self.planned}

    def predicted_s(self, sizes: Sequence[int]) -> float:
        return self._plan(tuple(sizes)).prediction.step_s

    def _plan(self, sizes: tuple[int, ...] | None):
        spec = PipelineJobSpec(
            model=Model(entrypoint="pipelinejob_trainer.models.virtual:layers", num_layers=self.blocks + 2),
            data=Data(paths=(str(TEXT),), sequence_length=16),
            parallelism=Parallelism(pipeline=self.ranks),
            schedule=ScheduleSpec(name=ScheduleName.ONE_F_ONE_B, micro_batches=MICRO_BATCHES, micro_batch_size=1),
            partition=Partition(layers=sizes),
            training=Training(steps=1),
        )
        return make_plan(namespace="bench", name="worth", spec=spec, profile=self._profile())

    def _profile(self) -> Profile:
        layers = [
            LayerCost(
                name=str(index),
                forward_s=ms / 1000,
                backward_input_s=ms / 1000,
                backward_weight_s=ms / 1000,
                parameter_bytes=int(parameters * 4000),
                activation_bytes=0,
                output_bytes=0,
            )
            for index, (ms, parameters) in enumerate(zip(self.layers_ms, self.parameters, strict=True))
        ]
        return Profile(source=CostSource.PROFILED, layers=tuple(layers), stage_speeds=self.speeds)


def cases(layer_ms: float) -> tuple[Case, ...]:
    return (
        Case(name="heavy embedding and head", layer_ms=layer_ms, blocks=26, table=11.3, speeds=(1.0,) * 3),
        Case(
            name="unlike devices",
            layer_ms=layer_ms,
            blocks=62,
            table=1,
            speeds=(1.0, 1.0, 0.6, 1.0, 0.8, 1.0, 0.6, 1.0),
        ),
        Case(name="both", layer_ms=layer_ms, blocks=26, table=11.3, speeds=(0.6, 1.0, 0.8, 1.0)),
    )


def measure(rank: int, case: Case, rounds: int) -> dict[str, list]:
    """One process: play a case in all ways, in turns."""
    groups = process_groups(pipeline=case.ranks, data=1)
    players: dict[str, Player] = {}
    for way, sizes in case.ways.items():
        seconds = case.layers_ms[1:]  # virtual models have an embedding of their own, which takes nothing
        job = virtual_job(
            one_f_one_b(case.ranks, MICRO_BATCHES),
            forward_ms=seconds,
            input_ms=seconds,
            weight_ms=seconds,
            cuts=(sizes[0] - 1, *sizes[1:]),
            speed=case.speeds[rank],
        )
        players[way] = ours(job, rank, groups)
    return take_turns(players, rounds)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is reported of one case; steps by the way in which the model was divided."""

    case: Case
    steps: dict[str, Measured]

    @property
    def worth(self) -> float:
        """Return how many times the throughput of the better other division the plan has."""
        return (
            min(each.median_s for way, each in self.steps.items() if way != "planned") / self.steps["planned"].median_s
        )

    @property
    def off_plan(self) -> float:
        """Return how far the worst of the steps is from its prediction."""
        ways = self.case.ways
        return max(abs(each.least_s / self.case.predicted_s(ways[way]) - 1) for way, each in self.steps.items())

    @property
    def holds(self) -> bool:
        return self.worth >= BOUND

    def __str__(self) -> str:
        steps = " | ".join(f"{each}, {'-'.join(map(str, self.case.ways[way]))}" for way, each in self.steps.items())
        verdict = "holds" if self.holds else "OUT OF BOUND"
        return f"| {self.case.name} | {steps} | {self.worth:.2f} | {self.off_plan:.1%} | {verdict} |"

    @property
    def figures(self) -> dict[str, object]:
        return {
            "case": self.case.name,
            "layers": self.case.ways,
            "steps": {way: asdict(each) for way, each in self.steps.items()},
            "predicted_s": {way: self.case.predicted_s(sizes) for way, sizes in self.case.ways.items()},
            "worth": self.worth,
            "off_plan": self.off_plan,
            "holds": self.holds,
        }


def main() -> int:
    options = parser(__doc__, rounds=3, output="bench-worth.json")
    options.add_argument("--layer-ms", type=float, default=3.0)
    given = options.parse_args()
    chosen = cases(given.layer_ms)
    rows = [
        Row(case=case, steps=laid_together(launch(measure, case, given.rounds, world=case.ranks))) for case in chosen
    ]
    print(
        f"1F1B, m={MICRO_BATCHES}, blocks of {given.layer_ms:g} ms each way; {given.rounds} rounds; steps in s, least"
        f" (median), and layers of each rank; load {load():.1f}"
    )
    print("| case | equal layers | by parameters | planned | worth | off the plan | |\n" + "|---" * 7 + "|")
    print("\n".join(map(str, rows)))
    write(given.output, {"rounds": given.rounds, "layer_ms": given.layer_ms, "rows": [row.figures for row in rows]})
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
