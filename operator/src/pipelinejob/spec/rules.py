"""What several fields must satisfy together, as CEL: written beside the type it speaks of, carried by the CRD.

The API server and the command line evaluate the very same expressions, so there is no second copy
that could disagree.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict


class Reason(StrEnum):
    """The API server's words for what kind of mistake it is."""

    INVALID = "FieldValueInvalid"
    FORBIDDEN = "FieldValueForbidden"
    REQUIRED = "FieldValueRequired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One CEL rule. `self` is the value, `oldSelf` (only in rules on changes) what it was.

    `message` says rule and way out. `says`, where given, says the same with the values in it: a
    text whose %d and %s are filled by the CEL expressions `values`. `field` is where the error is
    reported, relative to the type.
    """

    rule: str
    message: str
    says: str | None = None
    values: tuple[str, ...] = ()
    field: str | None = None
    reason: Reason = Reason.INVALID

    def dump(self) -> dict[str, str]:
        """Return the form that stands in the CRD."""
        parts = {
            "rule": self.rule,
            "message": self.message,
            "messageExpression": self._expression(),
            "fieldPath": self.field,
            "reason": self.reason.value,
        }
        return {key: value for key, value in parts.items() if value is not None}

    def _expression(self) -> str | None:
        # One `format`: the API server's cost estimate refuses `'...' + string(number)` as
        # unbounded.
        return None if self.says is None else f"'{self.says}'.format([{', '.join(self.values)}])"


_NAME = "[A-Za-z_][A-Za-z0-9_]*"
# Of a field that names a function of the user's.
IS_ENTRYPOINT = Rule(
    rule=f"self.matches('^{_NAME}([.]{_NAME})*:{_NAME}$')",
    message="must be package.module:function, as in mymodel.layers:build",
    says='"%s" is no entrypoint; write package.module:function, as in mymodel.layers:build',
    values=("self",),
)


def ruled(*rules: Rule) -> ConfigDict:
    """Return the `model_config` of a type whose values must satisfy `rules`."""
    return ConfigDict(json_schema_extra=rules_extra(*rules))


def rules_extra(*rules: Rule) -> dict[str, Any]:
    """Return what `rules` add to a JSON schema."""
    return {"x-kubernetes-validations": [rule.dump() for rule in rules]}


IS_ROLLED = "self.mode == 'Serve'"
"""Says of a spec that its changes are taken up while it runs: chain by chain."""


def unchanging(field: str, *, why: str, unless: str | None = None) -> Rule:
    """Refuse every change of `field`, but where the CEL `unless` holds."""
    return Rule(
        rule=f"{unless} || {same(field)}" if unless else same(field),
        message=f"{field} cannot change: {why}; create a job of another name",
        field=f".{field}",
        reason=Reason.FORBIDDEN,
    )


def changing_only_while_suspended(field: str, *, unless: str | None = None, but: str = "") -> Rule:
    """Refuse a change of a spec's `field` while stages run by it, but where the CEL `unless` holds; `but` says when."""
    or_else = f" || ({unless})" if unless else ""
    return Rule(
        rule=f"oldSelf.suspend || {IS_ROLLED} || {same(field)}{or_else}",
        message=f"{field} cannot change while stages run by it{but}; set suspend to true, apply, then change it",
        field=f".{field}",
        reason=Reason.FORBIDDEN,
    )


def same(field: str) -> str:
    """Return the CEL that says whether `field` is as it was."""
    both = f"has(oldSelf.{field}) && self.{field} == oldSelf.{field}"
    return f"(has(self.{field}) ? {both} : !has(oldSelf.{field}))"


# A running job takes another number of replicas (`kubectl scale`) where that changes none of its
# numbers: the sequences of a step are then given for all replicas together. With recovery in place
# it takes other stages, too.
_OF_ALL_REPLICAS = (
    "has(self.schedule) && has(oldSelf.schedule)"
    " && has(self.schedule.globalBatchSize) && has(oldSelf.schedule.globalBatchSize)"
)
_IN_PLACE = "self.recovery.inPlace && oldSelf.recovery.inPlace"
_SCALES = " && ".join(
    (
        _OF_ALL_REPLICAS,
        "has(self.parallelism.data) && has(oldSelf.parallelism.data)",
        *(same(f"parallelism.{field}") for field in ("gpus", "tensor", "expert", "sharding")),
        f"({same('parallelism.pipeline')} || ({_IN_PLACE} && has(self.parallelism.pipeline)))",
    )
)
RESIZING_RULE = Rule(
    rule=f"oldSelf.suspend || {IS_ROLLED} || {same('parallelism')} || ({_SCALES})",
    message="parallelism cannot change while stages run by it, but for data, where schedule.globalBatchSize is given, "
    "and for pipeline, where recovery.inPlace is true as well; set suspend to true, apply, then change it",
    field=".parallelism",
    reason=Reason.FORBIDDEN,
)
_RESHAPES = f"{_IN_PLACE} && {_OF_ALL_REPLICAS}"
_KEPT = ("microBatches", "microBatchSize", "batchSize", "globalBatchSize", "memoryCap", "updateInterval", "actions")
_REORDERS = " && ".join((_RESHAPES, *(same(f"schedule.{field}") for field in _KEPT)))
RESHAPING_RULES = (
    changing_only_while_suspended(
        "schedule",
        unless=_REORDERS,
        but=", but for name, virtualStages and what is recomputed, with recovery.inPlace and globalBatchSize",
    ),
    changing_only_while_suspended(
        "partition", unless=_RESHAPES, but=", but with recovery.inPlace and schedule.globalBatchSize"
    ),
)
