"""Merges pod templates as kubectl users expect: lists of named things by their key, other lists replaced, maps deep."""

from collections.abc import Mapping
from typing import Any

# Kubernetes' own patch merge keys, for the lists that a template is likely to have on both sides.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "schedulingGates": "name",
}
# A volume, or a variable, has one source: naming another replaces the first.
_SOURCES = {"volumes", "env"}


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `overlay` over `base`: what it states wins, what it leaves out stays, and `$patch: delete` takes away."""
    merged = dict(base)
    for key, value in overlay.items():
        merged[key] = _merge_value(key, merged.get(key), value)
    return merged


def _merge_value(key: str, base: Any, overlay: Any) -> Any:
    if isinstance(base, Mapping) and isinstance(overlay, Mapping):
        return merge(base, overlay)
    if isinstance(base, list | tuple) and isinstance(overlay, list | tuple) and key in MERGE_KEYS:
        return _merge_list(key, base, overlay)
    return overlay


def _merge_list(key: str, base: list[Any] | tuple[Any, ...], overlay: list[Any] | tuple[Any, ...]) -> list[Any]:
    name = MERGE_KEYS[key]
    items = {item[name]: item for item in base}
    for item in overlay:
        if item.get("$patch") == "delete":
            items.pop(item[name], None)
            continue
        under = {} if key in _SOURCES else items.get(item[name], {})
        items[item[name]] = merge(under, item)
    return list(items.values())
