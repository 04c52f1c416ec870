"""How much a rank holds at most in a step: its parameters and what goes with them, and what micro-batches keep.

As the trainer has it: parameters and the optimiser's state always; copies in bf16 from a stage's
first pass to the end of the step; gradients from its first weight gradient to the step's update,
which makes no large temporaries.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipelinejob.costs.layers import LayerCost, kept_bytes
from pipelinejob.schedules.actions import GIVES_GRADIENT, Action, ActionKind

# A rank posts this many receives ahead of the one that it waits for, and more while they take less
# than so many bytes.
AHEAD_MESSAGES = 2
AHEAD_BYTES = 1 << 20


def ahead_bytes(message_bytes: int, num_messages: int) -> int:
    """Return what receives posted ahead take, of one rank that sends so many messages in a step."""
    if not message_bytes:
        return 0
    return message_bytes * min(num_messages, max(AHEAD_MESSAGES + 1, AHEAD_BYTES // message_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBytes:
    """What one stage takes: its gradients, and for one micro-batch what is kept and what a pass takes while it lasts.

    `casts` are copies of parameters in bf16. Of what is `kept` for a backward pass, `again` is of
    layers that are computed again, as `again_casts` are of their copies: after a forward pass what
    the stage `received` stands for it.
    """

    gradients: int
    casts: int
    received: int
    kept: int
    between: int
    working: int
    is_again: bool = False
    again: int = 0
    again_casts: int = 0


def stage_bytes(layers: Sequence[LayerCost], *, received: int, is_split: bool, recomputed: int = 0) -> StageBytes:
    """Add up the layers of a stage, the first `recomputed` of which are computed again.

    A pass works on one layer after the other. When a whole backward pass comes back to one, what
    the layers behind it kept is gone. The first half of a split one lets go of nothing before its
    end, and gathers gradients on its way.
    """
    sizes = [received, *(layer.output_bytes for layer in layers)]
    let_go = working = 0
    for layer, (taken, given) in zip(reversed(layers), reversed(list(pairwise(sizes))), strict=True):
        working = max(working, layer.working_bytes - let_go)
        if is_split:
            gathered = layer.working_bytes - taken - given
            let_go -= max(gathered, _between(layer) - layer.activation_bytes, 0)
        else:
            let_go += layer.own_bytes
    again = kept_bytes(layers[:recomputed])
    return StageBytes(
        gradients=sum(layer.parameter_bytes for layer in layers),
        casts=sum(layer.cast_bytes for layer in layers),
        received=received,
        kept=again + kept_bytes(layers[recomputed:]),
        between=sum(map(_between, layers)),
        working=working,
        is_again=recomputed > 0,
        again=again,
        again_casts=sum(layer.cast_bytes for layer in layers[:recomputed]),
    )


def _between(layer: LayerCost) -> int:
    return layer.activation_bytes if layer.between_bytes is None else layer.between_bytes


def peak_bytes(
    actions: Iterable[tuple[Action, int]],
    stages: Mapping[int, StageBytes],
    *,
    parameter_bytes: int,
    weight_bytes: int | None = None,
    optimizer_bytes: int | None = None,
    num_versions: int,
    is_asynchronous: bool,
) -> int:
    """Return the most that is held while a rank's actions, each with its stage, are played.

    An asynchronous schedule updates within the step, with activations held and gradients always
    there; each of its micro-batches keeps copies in bf16 of its own, of the weights that it met.
    Gradients are as large as parameters; unset, so is what is held of these (`weight_bytes`), and
    the optimiser's state is twice as large.
    """
    moments = 2 * parameter_bytes if optimizer_bytes is None else optimizer_bytes
    state = num_versions * (parameter_bytes if weight_bytes is None else weight_bytes) + moments
    gradients = parameter_bytes if is_asynchronous else 0
    have_casts: set[int] = set()
    have_gradients: set[int] = set()
    held = peak = 0
    for action, stage in actions:
        size = stages[stage]
        again = size.again + (size.again_casts if is_asynchronous else 0)
        kept = size.kept + (size.casts if is_asynchronous else 0)
        before = kept - again + (size.received if size.is_again else 0)
        if stage not in have_casts and not is_asynchronous:
            have_casts.add(stage)
            state += size.casts
        during = 0
        if action.kind is ActionKind.FORWARD:
            held += before
            during = size.working
        elif action.kind in GIVES_GRADIENT:
            during = again + size.working
        earlier = gradients
        if action.kind in _GIVES_WEIGHT_GRADIENTS and stage not in have_gradients:
            have_gradients.add(stage)
            gradients = min(gradients + size.gradients, parameter_bytes)
        # A whole backward pass lets go of layer after layer while their gradients come, a second
        # half at its end.
        peak = max(peak, (gradients if action.kind is ActionKind.WEIGHT else earlier) + held + during)
        held += _change(action, size, before=before)
        peak = max(peak, gradients + held)
    return state + peak


_GIVES_WEIGHT_GRADIENTS = frozenset({ActionKind.BACKWARD, ActionKind.WEIGHT})


def _change(action: Action, size: StageBytes, *, before: int) -> int:
    """Return by how much a backward action changes what is held."""
    match action.kind:
        case ActionKind.INPUT:
            return size.between + (size.received if size.is_again else 0) - before
        case ActionKind.WEIGHT:
            return -size.between - (size.received if size.is_again else 0)
        case ActionKind.BACKWARD:
            return -before
        case _:
            return 0
