"""Another partition of a running job's layers, as it was planned by what the stages measured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Divided:
    """The layers divided by the speeds that the stages were measured to have."""

    speeds: tuple[float, ...]  # of each stage, the fastest being 1
    layers: tuple[int, ...]  # of each stage of the route
    before: tuple[int, ...]
    step_ratio: float  # a step with it to one as it is, both predicted with these speeds
