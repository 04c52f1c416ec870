"""Kubernetes' label selectors and node selectors, matched against plain mappings."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelinejob_operator.cluster import Object


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Tell whether a label selector matches; none at all matches nothing, an empty one everything."""
    if selector is None:
        return False
    wanted = selector.get("matchLabels") or {}
    return has_labels(labels, wanted) and all(matches(labels, each) for each in selector.get("matchExpressions") or ())


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Tell whether all of these labels are there, with these values."""
    return all(labels.get(key) == value for key, value in wanted.items())


def selects_node(selector: Mapping[str, Any] | None, node: Object) -> bool:
    """Tell whether one of a node selector's terms matches; without a selector any node does."""
    return selector is None or any(_matches_term(node, term) for term in selector.get("nodeSelectorTerms") or ())


def matches(labels: Mapping[str, str], requirement: Mapping[str, Any]) -> bool:  # noqa: PLR0911  # one case an operator
    """Tell whether labels meet one requirement of a selector."""
    value = labels.get(requirement["key"])
    wanted: Sequence[str] = requirement.get("values") or ()
    match requirement["operator"]:
        case "In":
            return value in wanted
        case "NotIn":
            return value not in wanted
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return (number := _integer(value)) is not None and number > int(wanted[0])
        case "Lt":
            return (number := _integer(value)) is not None and number < int(wanted[0])
        case _:
            return False


def _matches_term(node: Object, term: Mapping[str, Any]) -> bool:
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    expressions = term.get("matchExpressions") or ()
    names = term.get("matchFields") or ()
    if not expressions and not names:
        return False  # an empty term matches nothing
    return all(matches(labels, each) for each in expressions) and all(matches(fields, each) for each in names)


def _integer(value: str | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None
