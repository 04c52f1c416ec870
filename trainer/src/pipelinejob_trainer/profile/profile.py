"""Measures what layers, links and steps cost here: the Profile that a plan is made from.

On CPUs as many processes measure at the same time (`lockstep`) as stages compute at once: they
share caches and memory bandwidth, as the stages will. Two of them then play an empty pipeline, to
measure links and book-keeping. On a GPU one process measures, and links are those of the data
sheet.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

from pipelinejob.contract.plan import CostSource, Plan
from pipelinejob.costs.layers import Profile
from pipelinejob.planning.playing import schedule_of
from pipelinejob.spec.training import Compile
from pipelinejob_trainer.data.dataset import Dataset, open_dataset
from pipelinejob_trainer.profile.layers import Costs, Text, empty_action_s, layer_costs
from pipelinejob_trainer.profile.lockstep import Alone, Lockstep, joined
from pipelinejob_trainer.profile.overheads import Overheads, nominal_overheads, played_overheads
from pipelinejob_trainer.profile.stopwatch import Stopwatch
from pipelinejob_trainer.profile.workers import Worker, num_at_once
from pipelinejob_trainer.runtime.device_memory import peak_bytes
from pipelinejob_trainer.training.membership import choose_device

_REPEATS = 7


def main(plan: Plan, worker: Worker | None) -> None:
    """Print the Profile of a plan's model on this machine, as JSON.

    Of several processes only the first prints it.
    """
    if worker is None:
        profile = measure(plan)
    else:
        with joined(worker, num_at_once(plan) or 1) as lockstep:
            profile = measure(plan, lockstep)
    if profile is not None:
        sys.stdout.write(profile.model_dump_json(by_alias=True, exclude_none=True) + "\n")


def measure(plan: Plan, lockstep: Lockstep | None = None) -> Profile | None:
    """Measure a plan's layers, and with a second process also links and steps; takes some seconds.

    Only the first of several processes returns a profile. Raises UserError for a model or text
    that cannot be used.
    """
    data = open_dataset(
        plan.data,
        schedule=plan.schedule,
        replicas=plan.parallelism.data,
        seed=plan.training.seed,
        model=plan.model,
    )
    is_split = schedule_of(plan).is_split
    process_bytes = peak_bytes(choose_device(plan))  # nothing is built yet
    watch = Stopwatch(choose_device(plan), shares_processors=_shares_processors(plan))
    is_measuring = lockstep is None or lockstep.measures_layers
    layers, around_s = _layers(plan, data, watch, lockstep) if is_measuring else Costs([])
    overheads = _overheads(plan, lockstep, max((layer.output_bytes for layer in layers[:-1]), default=0))
    if lockstep is not None and lockstep.rank > 0:
        return None
    reading_s = _typical_s(lambda: data.batch(1, 0, 0)) * plan.schedule.micro_batches
    return Profile(
        source=CostSource.PROFILED,
        layers=tuple(layers),
        micro_batch_size=plan.schedule.micro_batch_size,
        concurrency=num_at_once(plan),
        availability=watch.availability,
        link_s=overheads.link_s,
        link_bytes_per_s=overheads.link_bytes_per_s,
        action_s=empty_action_s(watch, is_split=is_split) + overheads.action_s + around_s / (3 if is_split else 2),
        step_overhead_s=reading_s + overheads.step_s,
        process_bytes=process_bytes,
        optimizer=plan.training.optimizer,
        table_moments=plan.training.table_moments,
        is_compiled=plan.training.compile is Compile.LAYERS,
    )


def _shares_processors(plan: Plan) -> bool:
    at_once = num_at_once(plan)
    return at_once is not None and at_once < plan.parallelism.pipeline * plan.parallelism.data


def _layers(plan: Plan, data: Dataset, watch: Stopwatch, lockstep: Lockstep | None) -> Costs:
    read = data.batch(1, 0, 0)
    tokens, targets = read.tokens.to(watch.device), read.targets.to(watch.device)
    positions = None if read.positions is None else read.positions.to(watch.device)
    text, is_split = Text(tokens=tokens, targets=targets, positions=positions), schedule_of(plan).is_split
    return layer_costs(plan, text, watch, is_split=is_split, neighbours=lockstep or Alone())


def _overheads(plan: Plan, lockstep: Lockstep | None, num_bytes: int) -> Overheads:
    if lockstep is None:
        return nominal_overheads(plan)
    num_bytes = lockstep.broadcast(num_bytes)
    return played_overheads(plan, lockstep.pair, num_bytes=num_bytes) if lockstep.is_in_pair else Overheads()


def _typical_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)
