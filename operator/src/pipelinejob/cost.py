"""What layers cost: the values that partition, simulator and planner reckon with, whoever measured or derived them."""

from pipelinejob.plan import CostSource
from pipelinejob.values import Value


class LayerCost(Value):
    """One layer, for one micro-batch of the job's schedule. Seconds are of one stage working alone on its device."""

    name: str
    forward_s: float
    backward_s: float  # the full backward pass
    optimizer_s: float = 0.0  # each step
    parameter_bytes: int  # fp32 parameters
    activation_bytes: int  # kept from forward to backward
    output_bytes: int  # what the next layer receives


class Profile(Value):
    """The costs of a model's layers, in order, and of the places and links they run on.

    `concurrency` is how many stages of one node truly compute at once (processor cores over threads of a stage); None means
    each has its own device. `link_s` and `link_bytes_per_s` describe one hop between neighbouring stages.
    """

    source: CostSource
    layers: tuple[LayerCost, ...]
    concurrency: int | None = None
    link_s: float = 0.0
    link_bytes_per_s: float | None = None
    step_overhead_s: float = 0.0  # each step, outside the schedule: data, norm all-reduce, book-keeping
