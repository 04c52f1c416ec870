"""The optimiser of a rank's parameters: which rule updates each, its state by name, the gradients' norm.

torch's own classes are not used: they import torch._dynamo, four seconds of a stage's start, and
key their state by position, where a checkpoint that may be split differently needs names. The
rules' arithmetic is theirs, on the same foreach kernels.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import _foreach_mul_, _foreach_norm  # see adamw.py

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.models.own.refusals import SPARSE
from pipelinejob_trainer.optimizers.rule import Batch, Rule

# Updated at once: on a GPU few kernels are to be started; on a CPU there is one a parameter
# anyhow.
_GROUP_BYTES = {"cuda": 1 << 26, "cpu": 1 << 20}


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """How one parameter is updated: by which rule, with which share of the learning rate, and weight decay."""

    rule: Rule
    rate_scale: float = 1.0
    weight_decay: float = 0.0


class Optimizer:
    """Parameters, by global name, their state, by kind and name, and how often each was updated.

    As in torch, a parameter without a gradient is not updated, nor is its state; a gradient of
    zeros does update them. A complex parameter counts as two real ones.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.nn.Parameter]],
        treatment_of: Callable[[str, torch.nn.Parameter], Treatment],
    ) -> None:
        of_all = dict(parameters)
        self.parameters: dict[str, torch.Tensor] = {name: each for name, each in of_all.items() if each.requires_grad}
        treatments = {name: treatment_of(name, of_all[name]) for name in self.parameters}
        self._check_complex(treatments)
        states = {name: treatments[name].rule.new_state(each) for name, each in self.parameters.items()}
        self.states: dict[str, dict[str, torch.Tensor]] = {}
        for name, state in states.items():
            for kind, tensor in state.items():
                self.states.setdefault(kind, {})[name] = tensor
        self._numbers = torch.zeros(len(self.parameters), dtype=torch.int64)
        self.counts = {name: self._numbers[place] for place, name in enumerate(self.parameters)}
        self._frozen = {name: each for name, each in of_all.items() if not each.requires_grad}
        self._groups = tuple(_groups(self.parameters, treatments, states))

    @property
    def state_bytes(self) -> int:
        """How much memory the state takes."""
        return sum(tensor.nbytes for of in self.states.values() for tensor in of.values())

    @torch.no_grad()
    def squared_norm(self, names: Collection[str] | None = None) -> torch.Tensor:
        """Return the squared norm of the gradients of these parameters, or of all.

        Float64, on their device. Without any gradients it is on the CPU. Raises UserError for
        gradients that cannot be used.
        """
        gradients = [
            each.grad
            for name, each in self.parameters.items()
            if each.grad is not None and (names is None or name in names)
        ]
        if not gradients:
            return torch.zeros((), dtype=torch.float64)
        self._check_dense(gradients)
        return torch.stack(list(_foreach_norm(gradients))).double().square().sum()

    @torch.no_grad()
    def step(self, *, rate: float, gradient_factor: float = 1.0) -> None:
        """Update parameters and states by gradients times `gradient_factor`.

        Temporaries are as large as a group of parameters, not as all of them. Raises UserError as
        `squared_norm` does, and for parameters that have begun to need gradients.
        """
        self._check_frozen()
        self._numbers += torch.tensor([each.grad is not None for each in self.parameters.values()], dtype=torch.int64)
        numbers = self._numbers.tolist()
        for group in self._groups:
            for batch in group.batches(numbers, rate):
                self._check_dense(batch.gradients)
                if gradient_factor != 1.0:
                    _foreach_mul_(batch.gradients, gradient_factor)
                group.treatment.rule.update(batch)

    def zero_gradients(self) -> None:
        """Set all gradients to None."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def _check_frozen(self) -> None:
        for name, parameter in self._frozen.items():
            if parameter.grad is not None:
                raise UserError(
                    "Unfrozen",
                    f"{name} has a gradient, but needed none (requires_grad=False) when training began, so it has no"
                    " place in the optimiser; let it require gradients from the start, and give it none as long as it"
                    " is to stay as it is",
                )

    def _check_dense(self, gradients: Iterable[torch.Tensor]) -> None:
        if all(each.layout is torch.strided for each in gradients):
            return
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and parameter.grad.layout is not torch.strided:
                raise UserError("SparseGradient", f"the gradient of {name} is sparse; {SPARSE}")

    def _check_complex(self, treatments: Mapping[str, Treatment]) -> None:
        for name, treatment in treatments.items():
            if self.parameters[name].is_complex() and not treatment.rule.takes_complex:
                raise UserError(
                    "ComplexParameter",
                    f"spec.training.optimizer {treatment.rule.name}: {name} is complex, and torch.optim's own takes"
                    " real ones only; use AdamW or SGD, or keep real and imaginary part as two parameters",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Parameters that are updated together, if all have gradients; `places` are theirs among all."""

    treatment: Treatment
    places: Sequence[int]
    parameters: Sequence[torch.Tensor]
    states: Mapping[str, Sequence[torch.Tensor]]
    owned: Sequence[Mapping[str, torch.Tensor]]  # the same, by parameter
    decays: Sequence[float]
    decayed: Mapping[float, Sequence[int]]

    def batches(self, numbers: Sequence[int], rate: float) -> Iterator[Batch]:
        """Return parameters with gradients, those that were updated equally often together."""
        gradients = [each.grad for each in self.parameters]
        there = [at for at, gradient in enumerate(gradients) if gradient is not None]
        found = {numbers[self.places[at]] for at in there}
        for number in sorted(found):  # mostly one
            if len(found) == 1 and len(there) == len(self.places):
                yield self._batch(self, gradients, number, rate)
            else:
                mine = [at for at in there if numbers[self.places[at]] == number]
                yield self._batch(self._of(mine), [gradients[at] for at in mine], number, rate)

    def _of(self, chosen: Sequence[int]) -> "_Group":
        return _group(
            self.treatment,
            [self.places[at] for at in chosen],
            [self.parameters[at] for at in chosen],
            [self.owned[at] for at in chosen],
            [self.decays[at] for at in chosen],
        )

    @staticmethod
    def _batch(group: "_Group", gradients: Sequence[torch.Tensor | None], number: int, rate: float) -> Batch:
        return Batch(
            parameters=group.parameters,
            gradients=[each for each in gradients if each is not None],  # all have one
            states=group.states,
            decayed=group.decayed,
            number=number,
            rate=rate * group.treatment.rate_scale,
        )


def _group(
    treatment: Treatment,
    places: Sequence[int],
    parameters: Sequence[torch.Tensor],
    owned: Sequence[Mapping[str, torch.Tensor]],
    decays: Sequence[float],
) -> _Group:
    states: dict[str, list[torch.Tensor]] = {}
    decayed: dict[float, list[int]] = {}
    for at, (state, decay) in enumerate(zip(owned, decays, strict=True)):
        for kind, tensor in state.items():
            states.setdefault(kind, []).append(tensor)
        if decay:
            decayed.setdefault(decay, []).append(at)
    return _Group(
        treatment=treatment,
        places=places,
        parameters=parameters,
        states=states,
        owned=owned,
        decays=decays,
        decayed=decayed,
    )


def _groups(
    parameters: Mapping[str, torch.Tensor],
    treatments: Mapping[str, Treatment],
    states: Mapping[str, Mapping[str, torch.Tensor]],
) -> Iterator[_Group]:
    """Return parameters of one rule and rate in groups that are updated together, whatever their decay."""
    names = list(parameters)
    alike: dict[tuple[Rule, float], list[int]] = {}
    for place, name in enumerate(names):
        alike.setdefault((treatments[name].rule, treatments[name].rate_scale), []).append(place)
    for places in alike.values():
        for chosen in _filled(places, [parameters[name] for name in names]):
            mine = [names[place] for place in chosen]
            yield _group(
                treatments[mine[0]],
                chosen,
                [parameters[name] for name in mine],
                [states[name] for name in mine],
                [treatments[name].weight_decay for name in mine],
            )


def _filled(places: Iterable[int], parameters: Sequence[torch.Tensor]) -> Iterator[list[int]]:
    group: list[int] = []
    num_bytes = 0
    for place in places:
        parameter = parameters[place]
        if group and num_bytes + parameter.nbytes > _GROUP_BYTES[parameter.device.type]:
            yield group
            group, num_bytes = [], 0
        group.append(place)
        num_bytes += parameter.nbytes
    if group:
        yield group
