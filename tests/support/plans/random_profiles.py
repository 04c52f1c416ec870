"""Random costs and memory caps for schedules that look at them; the same seed gives the same."""

import random
from dataclasses import dataclass

from pipelinejob.scheduler.catalogue import named
from pipelinejob.schedules.costs import Link, shares
from pipelinejob.schedules.memory import peak_activations
from pipelinejob.schedules.setting import Setting
from pipelinejob.simulation.simulate import simulate


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One case; `is_unequal` says whether its ranks' costs differ."""

    setting: Setting
    is_unequal: bool


def random_profile(seed: int) -> Profile:
    """Draw 2 to 6 ranks, 2 to 16 micro-batches, costs, a link, and caps from 1 to 2p.

    Seven in ten have ranks that differ, each of F, I and W evenly on a logarithmic scale within a
    factor of four. A message takes up to 20 % of a mean forward, any part of it as latency. Half
    of the cases have one cap for all ranks.
    """
    draw = random.Random(seed)
    p, m = draw.randint(2, 6), draw.randint(2, 16)
    is_unequal = draw.random() < 0.7

    def seconds() -> list[float]:
        return [4 ** draw.random() for _ in range(p)] if is_unequal else [4 ** draw.random()] * p

    forward_s, input_s, weight_s = seconds(), seconds(), seconds()
    message_s, latency_part = draw.uniform(0, 0.2) * sum(forward_s) / p, draw.random()
    link = Link(latency_s=message_s * latency_part, message_s=message_s * (1 - latency_part))
    caps = [draw.randint(1, 2 * p)] * p if draw.random() < 0.5 else [draw.randint(1, 2 * p) for _ in range(p)]
    setting = Setting(
        num_ranks=p,
        num_micro_batches=m,
        costs=shares(forward_s=forward_s, input_s=input_s, weight_s=weight_s, link=link),
        activation_caps=tuple(map(float, caps)),
    )
    return Profile(setting=setting, is_unequal=is_unequal)


def best_named_s(setting: Setting) -> float:
    """Return the shortest makespan of a named synchronous schedule within the caps; infinite where none fits."""
    caps = setting.activation_caps or (float("inf"),) * setting.num_ranks
    return min(
        (
            simulate(schedule, setting.costs_of(*schedule.routes)).makespan_s
            for schedule in named(setting)
            if all(peak <= cap for peak, cap in zip(peak_activations(schedule), caps, strict=True))
        ),
        default=float("inf"),
    )
