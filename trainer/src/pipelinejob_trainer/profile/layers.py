"""What each layer costs on this machine, in time and memory, when played as a run plays it.

Each layer is a stage of its own, and forwards and backwards of micro-batches alternate, so that a
pass finds the caches as in a run, filled by other layers and the pass before. The cost of a
stage's call itself is measured with a layer that does almost nothing, and subtracted: a stage of
ten layers pays it once, not ten times. So is what a Hugging Face model's own forward takes around
its blocks, and what it makes there and all blocks keep is measured beside.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import NamedTuple, Protocol

import torch

from pipelinejob.contract.plan import Plan
from pipelinejob.costs.layers import LayerCost
from pipelinejob.spec.training import Compile
from pipelinejob_trainer.base.nesting import Passed
from pipelinejob_trainer.data.micro_batch import Inputs
from pipelinejob_trainer.models.losses.loss import load_loss
from pipelinejob_trainer.models.own.refusals import check_layer
from pipelinejob_trainer.models.part import LayerEntry, build_part, num_layers
from pipelinejob_trainer.optimizers.choice import hidden_matrices, make_optimizer
from pipelinejob_trainer.optimizers.groups import freeze
from pipelinejob_trainer.profile.chain import Chain, Passes, Round, empty_passes
from pipelinejob_trainer.profile.memory import (
    LayerMemory,
    Received,
    layer_memory,
    own_copy,
    shared_bytes,
    starting_gradient,
)
from pipelinejob_trainer.profile.stopwatch import Stopwatch
from pipelinejob_trainer.runtime.rank import holds_frozen_short
from pipelinejob_trainer.stage.compiling import prepare

_STRETCH = 4  # layers
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 12
_BUDGET_S = 1.5  # for each way of playing a stretch
_FEWEST_TOGETHER = 2  # blocks, to see what they share
_HOLLOW_ROUNDS = 8
_CACHE_BYTES = 1 << 26  # more than a core's share of any last-level cache


class Neighbours(Protocol):
    """The processes that measure at the same time, as stages compute in a run."""

    def agree(self, seconds: float) -> float:
        """Wait for all of them; return the largest of their numbers."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A micro-batch of the run."""

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor | None = None

    @property
    def inputs(self) -> torch.Tensor | Inputs:
        """What the first layer receives."""
        return self.tokens if self.positions is None else Inputs(self.tokens, self.positions)


class Costs(NamedTuple):
    """What layers cost, and what a forward pass through blocks takes around them, however many there are."""

    layers: list[LayerCost]
    around_s: float = 0.0


def layer_costs(plan: Plan, text: Text, watch: Stopwatch, *, is_split: bool, neighbours: Neighbours) -> Costs:
    """Measure all layers of a plan's model; of a built-in model's equal blocks only a few."""
    total = num_layers(plan.model)
    costs: dict[int, LayerCost] = {}
    around_s: float | None = None
    shared: int | None = None
    received: Received = text.inputs
    for indices in _stretches(plan, total):
        stretch = _Stretch(plan, indices, received, text, watch)
        costs |= dict(zip(indices, stretch.measure(is_split=is_split, neighbours=neighbours), strict=True))
        received = stretch.output
        around_s = stretch.around_s() if around_s is None else around_s
        shared = stretch.shared_bytes(is_split=is_split) if shared is None else shared
    if _has_equal_blocks(plan):
        return Costs(_with_equal_blocks(costs, total))
    layers = [costs[index] for index in range(total)]
    blocks = [_among_others(block, around_s or 0.0, shared or 0) for block in layers[1:-1]]
    return Costs([layers[0], *blocks, layers[-1]], around_s or 0.0)


def _among_others(block: LayerCost, around_s: float, shared: int) -> LayerCost:
    """Return a block's costs without what it pays and keeps together with the stage's other blocks."""
    return block.model_copy(
        update={
            "forward_s": max(block.forward_s - around_s, 0.0),
            "shared_bytes": min(shared, block.activation_bytes),
        }
    )


def empty_action_s(watch: Stopwatch, *, is_split: bool) -> float:
    """Measure a stage's passes without compute: the mean over the kinds that a schedule has."""
    passes = empty_passes(watch, is_split=is_split)
    return mean(passes if is_split else passes[:2])


def _stretches(plan: Plan, total: int) -> Iterator[tuple[int, ...]]:
    if _has_equal_blocks(plan):
        yield (*range(min(_STRETCH, total - 1)), total - 1)
        return
    for first in range(0, total, _STRETCH):
        yield tuple(range(first, min(first + _STRETCH, total)))


def _has_equal_blocks(plan: Plan) -> bool:
    lora = plan.training.lora
    return plan.model.built_in is not None and (lora is None or lora.is_same_everywhere)


def _with_equal_blocks(costs: dict[int, LayerCost], total: int) -> list[LayerCost]:
    """Return all layers of a built-in model, every block with the mean block's costs."""
    blocks = [cost for index, cost in costs.items() if 0 < index < total - 1]
    seconds = ("forward_s", "backward_input_s", "backward_weight_s", "optimizer_s")
    block = blocks[0].model_copy(update={name: mean(getattr(each, name) for each in blocks) for name in seconds})
    named = (block.model_copy(update={"name": f"block-{index}"}) for index in range(total - 2))
    return [costs[0], *named, costs[total - 1]]


class _Stretch:
    """Some layers of a model, being measured."""

    def __init__(self, plan: Plan, indices: Sequence[int], received: Received, text: Text, watch: Stopwatch) -> None:
        self._plan = plan
        self._watch = watch
        self._received = received
        self._targets = text.targets
        part = build_part(
            plan.model,
            plan.data,
            stretches=[(index, index + 1) for index in indices],
            seed=plan.training.seed,
            lora=plan.training.lora,
        )
        for layer in part.layers:
            check_layer(layer.index, layer.module, is_split=False)
        part.settle(watch.device)
        if plan.training.compile is Compile.LAYERS:
            prepare(watch.device)
        freeze(part.named_parameters(), plan.training.groups)
        if holds_frozen_short(plan):
            part.hold_frozen_short()
        self._entries = tuple(part.layers)
        self._total = num_layers(plan.model)
        self._chain = Chain(
            self._entries,
            watch,
            total=self._total,
            precision=plan.training.precision,
            loss=load_loss(plan.training, watch.device),
            compiles=plan.training.compile is Compile.LAYERS,
        )
        hidden = hidden_matrices(part, self._total)
        self._optimizers = [
            make_optimizer(plan.training, entry.named_parameters(), hidden=hidden) for entry in self._entries
        ]
        self.output: Received = received  # of the last layer, once measured
        self._alone: list[LayerMemory] = []  # of each layer, once measured

    def measure(self, *, is_split: bool, neighbours: Neighbours) -> list[LayerCost]:
        """Return the layers' costs; compiled ones are compiled while their memory is measured, before any is timed."""
        memory = self._alone = self._memory(is_split=is_split)
        updates: list[list[float]] = [[] for _ in self._entries]
        rounds = self._play(neighbours, updates, is_split=is_split)
        is_whole = self._plan.training.compile is Compile.LAYERS  # compiled layers have no halves
        halves = rounds if is_split or is_whole else self._play(neighbours, updates, is_split=True)
        whole_empty, split_empty = (empty_passes(self._watch, is_split=each) for each in (False, True))
        m = self._plan.schedule.micro_batches
        return [
            self._cost(
                layer,
                None if is_split else Round.typical(rounds, layer, micro_batches=m) - whole_empty,
                Round.typical(halves, layer, micro_batches=m) - split_empty,
                median(updates[layer]),
                memory[layer],
            )
            for layer in range(len(self._entries))
        ]

    def around_s(self) -> float | None:
        """Measure what the model's own forward takes around blocks; None where no block here is run by one."""
        place = next((place for place, each in enumerate(self._entries) if self._is_run_by_another(each)), None)
        if place is None:
            return None
        block, chain = self._entries[place], Chain(self._entries[: place + 1], self._watch, total=self._total)
        assert block.runner is not None, "it is run by one"
        with block.runner.hollow(block.index):
            rounds = [chain.play(self._received, None, is_split=False) for _ in range(_HOLLOW_ROUNDS)]
        typical = Round.typical(rounds[1:], place, micro_batches=_HOLLOW_ROUNDS)
        return (typical - empty_passes(self._watch, is_split=False)).forward_s

    def shared_bytes(self, *, is_split: bool) -> int | None:
        """Measure what blocks that one forward runs keep once for all of them; None where fewer than two are here."""
        places = [place for place, each in enumerate(self._entries) if self._is_run_by_another(each)]
        if len(places) < _FEWEST_TOGETHER:
            return None
        blocks = self._entries[places[0] : places[-1] + 1]
        alone = [self._alone[place] for place in places]
        stage = self._chain.joined(blocks, is_split=is_split)
        (together,), _ = layer_memory([stage], self._entering(places[0]), self._targets, is_split=is_split)
        return shared_bytes(alone, together)

    def _entering(self, place: int) -> Received:
        """Return what a layer receives, from passes through those before it."""
        passed = own_copy(self._received)
        for stage in self._chain.stages(is_split=False)[:place]:
            output = stage.forward(0, passed, None, seed=0)
            stage.backward(0, starting_gradient(stage, output))
            passed = output
        return passed

    def _is_run_by_another(self, layer: LayerEntry) -> bool:
        return layer.runner is not None and 0 < layer.index < self._total - 1

    def _cost(
        self, layer: int, whole: Passes | None, halves: Passes, optimizer_s: float, memory: LayerMemory
    ) -> LayerCost:
        """Return a layer's costs.

        Where backward passes are whole, their halves are fractions of the whole one, which runs
        the graph only once.
        """
        both_s = halves.backward_s + halves.weight_s
        scale = whole.backward_s / both_s if whole and both_s else 1.0
        return LayerCost(
            name=self._entries[layer].name,
            forward_s=(whole or halves).forward_s,
            backward_input_s=halves.backward_s * scale,
            backward_weight_s=halves.weight_s * scale,
            optimizer_s=optimizer_s,
            parameter_bytes=sum(each.nbytes for each in self._optimizers[layer].parameters.values()),
            frozen_bytes=self._frozen_bytes(layer),
            optimizer_bytes=self._optimizers[layer].state_bytes,
            cast_bytes=memory.casts,
            activation_bytes=memory.kept,
            between_bytes=memory.between,
            working_bytes=memory.working,
            output_bytes=0 if self._entries[layer].index == self._total - 1 else memory.output,
        )

    def _frozen_bytes(self, layer: int) -> int:
        return sum(each.nbytes for _, each in self._entries[layer].named_parameters() if not each.requires_grad)

    def _play(self, neighbours: Neighbours, updates: list[list[float]], *, is_split: bool) -> list[Round]:
        """Play rounds, with an update after each; as many as all neighbours have time for."""

        def round_() -> Round:
            found = self._chain.play(self._received, self._targets, is_split=is_split)
            self._update(updates)
            return found

        neighbours.agree(0.0)
        began = time.perf_counter()
        round_()
        for seconds in updates:
            seconds.pop()  # the first one was a warm-up
        longest_s = neighbours.agree(time.perf_counter() - began)
        return [round_() for _ in range(min(max(int(_BUDGET_S / longest_s), _LEAST_ROUNDS), _MOST_ROUNDS))]

    def _update(self, updates: list[list[float]]) -> None:
        """Update all layers as at a step's end: norms first, then (uncached) parameters."""
        if self._watch.device.type == "cpu":
            torch.ones(_CACHE_BYTES // 4).add_(1)
        norms: list[list[float]] = [[] for _ in updates]
        for optimizer, seconds in zip(self._optimizers, norms, strict=True):
            with self._watch.timed(seconds):
                optimizer.squared_norm()
        for optimizer, norm, seconds in zip(self._optimizers, norms, updates, strict=True):
            with self._watch.timed(seconds):
                optimizer.step(rate=0.0, gradient_factor=0.5)
                optimizer.zero_gradients()
            seconds[-1] += norm[0]

    def _memory(self, *, is_split: bool) -> list[LayerMemory]:
        """Return the layers' memory.

        What is kept between halves is that of a split pass, for any schedule.
        """
        if self._plan.training.compile is Compile.LAYERS:
            whole, self.output = self._held(is_split=False)
            return whole
        split, self.output = self._held(is_split=True)
        if is_split:
            return split
        whole, _ = self._held(is_split=False)
        return [replace(one, between=other.between) for one, other in zip(whole, split, strict=True)]

    def _held(self, *, is_split: bool) -> tuple[list[LayerMemory], Passed]:
        self._chain.play(self._received, self._targets, is_split=is_split)  # so that there are gradients
        stages = self._chain.stages(is_split=is_split)
        return layer_memory(stages, self._received, self._targets, is_split=is_split)
