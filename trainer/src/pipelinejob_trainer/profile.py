"""What a plan's layers, links and steps cost on this device: the measured Profile that a plan can be made from.

On processors, as many processes measure side by side (`together`) as stages compute at once: they share caches and
memory's bandwidth, as the stages will. Two of them then play an empty pipeline, which tells what links and book-keeping
take. On a GPU one process measures, and links are by data sheet.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

from pipelinejob.cost import LayerCost, Profile
from pipelinejob.plan import CostSource, Plan
from pipelinejob.playing import schedule_of
from pipelinejob_trainer.beside import Seat, num_at_once
from pipelinejob_trainer.data import Dataset, open_dataset
from pipelinejob_trainer.process import choose_device
from pipelinejob_trainer.profile_layers import Text, empty_action_s, layer_costs
from pipelinejob_trainer.profile_pipeline import Overheads, nominal_overheads, played_overheads
from pipelinejob_trainer.together import Alone, Together, joined

_REPEATS = 7


def main(plan: Plan, seat: Seat | None) -> None:
    """Print the Profile of a plan's model on this machine, as JSON; of several processes only the first one does."""
    if seat is None:
        profile = measure(plan)
    else:
        with joined(seat, num_at_once(plan) or 1) as together:
            profile = measure(plan, together)
    if profile is not None:
        sys.stdout.write(profile.model_dump_json(by_alias=True, exclude_none=True) + "\n")


def measure(plan: Plan, together: Together | None = None) -> Profile | None:
    """Measure a plan's layers, and with a second process what links and steps cost; takes some seconds.

    Of several processes only the first gives a profile. Raises UserError for a model or text that cannot be used.
    """
    data = open_dataset(plan.data, schedule=plan.schedule, replicas=plan.parallelism.data, seed=plan.training.seed)
    layers = _layers(plan, data, together) if together is None or together.measures_layers else []
    overheads = _overheads(plan, together, max((layer.output_bytes for layer in layers[:-1]), default=0))
    if together is not None and together.rank > 0:
        return None
    reading_s = _typical_s(lambda: data.batch(1, 0, 0)) * plan.schedule.micro_batches
    device, is_split = choose_device(plan), schedule_of(plan).is_split
    return Profile(
        source=CostSource.PROFILED,
        layers=tuple(layers),
        micro_batch_size=plan.schedule.micro_batch_size,
        concurrency=num_at_once(plan),
        link_s=overheads.link_s,
        link_bytes_per_s=overheads.link_bytes_per_s,
        action_s=empty_action_s(device, is_split=is_split) + overheads.action_s,
        step_overhead_s=reading_s + overheads.step_s,
    )


def _layers(plan: Plan, data: Dataset, together: Together | None) -> list[LayerCost]:
    device = choose_device(plan)
    tokens, targets = (each.to(device) for each in data.batch(1, 0, 0))
    text, is_split = Text(tokens=tokens, targets=targets), schedule_of(plan).is_split
    return layer_costs(plan, text, device, is_split=is_split, neighbours=together or Alone())


def _overheads(plan: Plan, together: Together | None, num_bytes: int) -> Overheads:
    if together is None:
        return nominal_overheads(plan)
    num_bytes = together.first_says(num_bytes)
    return played_overheads(plan, together.pair, num_bytes=num_bytes) if together.is_of_the_pair else Overheads()


def _typical_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)
