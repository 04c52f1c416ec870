"""Parameter groups: `spec.training.groups`, by global names; of the groups that match, the first counts."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from pipelinejob.spec.optimization import ParameterGroup
from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.communication.gang import Gang


def group_of(name: str, groups: Iterable[ParameterGroup]) -> ParameterGroup | None:
    """Return the group of a parameter, if it is in one."""
    return next((group for group in groups if fnmatchcase(name, group.match)), None)


def freeze(parameters: Mapping[str, nn.Parameter], groups: Sequence[ParameterGroup]) -> None:
    """Let no parameter of a frozen group require its gradient."""
    for name, parameter in parameters.items():
        group = group_of(name, groups)
        if group is not None and group.frozen:
            parameter.requires_grad = False


def check_groups(groups: Sequence[ParameterGroup], names: Iterable[str], gang: Gang) -> None:
    """Refuse a group without parameters on any rank; every rank calls it, at the same point.

    Raises UserError, on all of them.
    """
    if not groups:
        return
    mine = list(names)
    matched = [sum(fnmatchcase(name, group.match) for name in mine) for group in groups]
    taken = [sum(group_of(name, groups) is group for name in mine) for group in groups]
    found = gang.sum(torch.tensor([*matched, *taken], dtype=torch.float64))
    for index, group in enumerate(groups):
        if found[index] == 0:
            raise UserError(
                "NoSuchParameter",
                f"spec.training.groups[{index}].match {group.match!r} matches no parameter of any stage; names are like"
                f" {_examples(mine)}, and * stands for anything",
            )
        if found[len(groups) + index] == 0:
            raise UserError(
                "NoSuchParameter",
                f"spec.training.groups[{index}].match {group.match!r} matches only what an earlier group has taken; the"
                " first that matches counts, so put it before that one, or take it out",
            )


def _examples(names: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys([*names[:1], *names[-1:]])) or "layers.0.weight"
