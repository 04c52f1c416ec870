"""Errors of a spec that no schema can see, mostly in pod templates, whose fields the CRD does not check.

The command line asks before a cluster is involved; the operator asks before it makes a pod, and
says the same in a condition.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipelinejob.base import names
from pipelinejob.base.errors import SpecError
from pipelinejob.base.quantities import is_quantity
from pipelinejob.fabric.presets import levels_of
from pipelinejob.fabric.topology import AUTO, HOSTNAME, NO_PROFILES, NODE_LEVEL, PROFILES, Profiles
from pipelinejob.models.huggingface import decoder_of_config
from pipelinejob.planning.dimensions import undividable
from pipelinejob.planning.playing import check_caps, few, setting_of, written_schedule
from pipelinejob.scheduler.catalogue import build, family
from pipelinejob.schedules.actions import ScheduleError
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Device, Model, PipelineJobSpec, Topology

# Lists that templates are merged by: each item must carry this key.
_KEYED_LISTS = {"initContainers": "name", "volumes": "name", "imagePullSecrets": "name"}
_KEYED_CONTAINER_LISTS = {"env": "name", "ports": "containerPort", "volumeMounts": "mountPath"}
# What the operator sets itself, and what a user would do instead.
_OPERATOR_FIELDS = {
    "hostname": "pods are named after the job",
    "subdomain": "it is the job's headless service",
    "nodeName": "stages are placed by the operator; use nodeSelector or affinity to narrow its choice",
}
_OWN_PORTS = {names.PORT_METRICS: names.PORT_METRICS_NAME, names.PORT_RENDEZVOUS: names.PORT_RENDEZVOUS_NAME}
_OWN_VOLUME = "plan"
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check(spec: PipelineJobSpec, profiles: Profiles | None = NO_PROFILES) -> tuple[SpecError, ...]:
    """Return all errors of a spec that passes its schema and CEL rules.

    `profiles` are the cluster's TopologyProfiles; None if they may come and go: what names them is
    not judged then.
    """
    return (
        *_check_arguments(spec),
        *_check_config(spec.model),
        *undividable(spec.model, spec.parallelism.tensor),
        *_check_schedule(spec),
        *_check_topology(spec.topology, profiles),
        *_check_templates(spec),
    )


def _check_arguments(spec: PipelineJobSpec) -> Iterator[SpecError]:
    for argument in spec.model.arguments:
        if not _ARGUMENT.fullmatch(argument):
            yield SpecError(
                "spec.model.arguments", f'"{argument}" cannot name an argument of a Python function; rename it'
            )


def _check_config(model: Model) -> Iterator[SpecError]:
    """Read the config, whose fields no schema knows, and compare its layers with spec.model.numLayers."""
    if model.config is None:
        return
    try:
        counted = decoder_of_config(model.config).num_layers
    except SpecError as error:
        yield error
        return
    if counted != model.num_layers:
        way_out = (
            "let entrypoint return these and write that number here, or leave config out"
            if model.hugging_face is None
            else "have both written anew by `pipelinejob validate --fill FILE`"
        )
        yield SpecError(
            "spec.model.numLayers",
            f"is {model.num_layers}, but the config has {counted - 2} blocks, which makes {counted} layers with "
            f"embedding and head; {way_out}",
        )


def _check_schedule(spec: PipelineJobSpec) -> Iterator[SpecError]:
    """Make the schedule for a few micro-batches; one that depends on costs is checked with its plan."""
    if spec.is_open:
        return  # for sizes that are not there yet; the search makes it
    schedule, num_ranks = spec.schedule, spec.parallelism.pipeline
    if schedule.name is ScheduleName.CUSTOM:
        try:
            written_schedule(spec)
        except SpecError as error:
            yield error
        return
    if family(schedule.name).looks_at_costs:
        return
    setting = replace(setting_of(schedule, num_ranks), num_micro_batches=few(schedule, num_ranks))
    try:
        check_caps(schedule.name, build(schedule.name, setting), setting.activation_caps)
    except ScheduleError as error:
        yield SpecError("spec.schedule", str(error))
    except SpecError as error:
        yield error


def _check_topology(topology: Topology, profiles: Profiles | None) -> Iterator[SpecError]:
    if topology.levels is not None:
        return  # overrides the profile, and the CRD's rules see both lists of names
    if profiles is None and topology.profile not in PROFILES:
        return  # `auto`, too, may find a TopologyProfile
    known_levels = {**PROFILES, **{name: levels_of(profile) for name, profile in (profiles or {}).items()}}
    if topology.profile not in {AUTO, *known_levels}:
        known = f"use {AUTO}, or one of {', '.join(known_levels)}"
        yield SpecError("spec.topology.profile", f'there is no profile "{topology.profile}"; {known}')
        return
    read = list(known_levels.values()) if topology.profile == AUTO else [known_levels[topology.profile]]
    levels = [level for profile in read for level in profile]
    for field in ("required", "preferred"):
        wanted = getattr(topology.pipeline, field)
        if wanted not in {None, NODE_LEVEL, HOSTNAME} and not any(level.is_called(wanted) for level in levels):
            known = ", ".join(dict.fromkeys([*(level.name for level in levels), NODE_LEVEL]))
            problem = f'no level of profile {topology.profile} is called "{wanted}"; use one of {known}'
            yield SpecError(f"spec.topology.pipeline.{field}", problem)


def _check_templates(spec: PipelineJobSpec) -> Iterator[SpecError]:
    if spec.template is not None:
        yield from _check_template("spec.template", spec.template, spec)
        yield from _check_trainer_is_named("spec.template.spec.containers", spec.template)
    for index, override in enumerate(spec.stage_templates):
        yield from _check_template(f"spec.stageTemplates[{index}].template", override.template, spec)


def _check_trainer_is_named(path: str, template: Mapping[str, Any]) -> Iterator[SpecError]:
    containers = [item for item in _items(_mapping(template.get("spec")), "containers") if "name" in item]
    if containers and all(item["name"] != names.CONTAINER_TRAINER for item in containers):
        listed = ", ".join(str(item["name"]) for item in containers)
        yield SpecError(path, f"none of {listed} is named `{names.CONTAINER_TRAINER}`; name the one that trains so")


def _check_template(path: str, template: Mapping[str, Any], spec: PipelineJobSpec) -> Iterator[SpecError]:
    for key in template:
        if key not in {"metadata", "spec"}:
            yield SpecError(f"{path}.{key}", "a pod template has only metadata and spec; move this below one of them")
    for part in ("metadata", "spec"):
        if not isinstance(template.get(part, {}), Mapping):
            yield SpecError(f"{path}.{part}", f"{template[part]!r} is no mapping")
    yield from _check_metadata(f"{path}.metadata", _mapping(template.get("metadata")))
    yield from _check_pod(f"{path}.spec", _mapping(template.get("spec")), spec)


def _check_metadata(path: str, metadata: Mapping[str, Any]) -> Iterator[SpecError]:
    for part in ("labels", "annotations"):
        values = metadata.get(part, {})
        for key in _mapping(values):
            if key.startswith(f"{names.GROUP}/"):
                yield SpecError(f"{path}.{part}[{key}]", f"{names.GROUP}/ is the operator's; use a prefix of your own")
        yield from _check_texts(f"{path}.{part}", values)


def _check_texts(path: str, values: Any) -> Iterator[SpecError]:
    """Refuse values that YAML reads as numbers or booleans: the API server takes no such pod, and no label is one."""
    if not isinstance(values, Mapping):
        yield SpecError(path, f"{values!r} is no mapping of names to texts")
        return
    for key, value in values.items():
        if not isinstance(value, str):
            yield SpecError(f"{path}[{key}]", f'{value!r} is no text; put it in quotes, "{value}"')


def _check_pod(path: str, pod: Mapping[str, Any], spec: PipelineJobSpec) -> Iterator[SpecError]:
    for field, why in _OPERATOR_FIELDS.items():
        if field in pod:
            yield SpecError(f"{path}.{field}", f"{field} is set by the operator ({why}); leave it out")
    if pod.get("restartPolicy", "Never") != "Never":
        problem = f'"{pod["restartPolicy"]}" cannot be: stages restart together, by failurePolicy; leave this out'
        yield SpecError(f"{path}.restartPolicy", problem)
    yield from _check_texts(f"{path}.nodeSelector", pod.get("nodeSelector") or {})
    for field, key in {"containers": "name", **_KEYED_LISTS}.items():
        yield from _check_keyed_list(f"{path}.{field}", pod.get(field, []), key)
    for index, volume in enumerate(_items(pod, "volumes")):
        if volume.get("name") == _OWN_VOLUME:
            yield SpecError(
                f"{path}.volumes[{index}].name", f'"{_OWN_VOLUME}" is the operator\'s volume; use another name'
            )
    for field in ("containers", "initContainers"):
        for index, container in enumerate(_items(pod, field)):
            yield from _check_container(f"{path}.{field}[{index}]", container, spec)


def _check_keyed_list(path: str, items: Any, key: str) -> Iterator[SpecError]:
    if not isinstance(items, list | tuple):
        yield SpecError(path, f"{items!r} is no list; write each item behind a dash")
        return
    seen = set()
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            yield SpecError(f"{path}[{index}]", f"{item!r} is no mapping; it needs at least {key}")
        elif not isinstance(item.get(key), str | int):
            yield SpecError(f"{path}[{index}].{key}", f"{key} is missing; every item of this list needs one")
        elif item[key] in seen:
            yield SpecError(f"{path}[{index}].{key}", f"{item[key]!r} stands here twice; keep one of them")
        else:
            seen.add(item[key])


def _check_container(path: str, container: Mapping[str, Any], spec: PipelineJobSpec) -> Iterator[SpecError]:
    is_trainer = container.get("name") == names.CONTAINER_TRAINER
    for field, key in _KEYED_CONTAINER_LISTS.items():
        yield from _check_keyed_list(f"{path}.{field}", container.get(field, []), key)
    for index, variable in enumerate(_items(container, "env")):
        if str(variable.get("name")).startswith("PIPELINEJOB_"):
            problem = f'"{variable["name"]}": names that begin with PIPELINEJOB_ are the operator\'s; use another'
            yield SpecError(f"{path}.env[{index}].name", problem)
        if not isinstance(variable.get("value", ""), str):
            problem = f'{variable["value"]!r} is no text; put it in quotes, "{variable["value"]}"'
            yield SpecError(f"{path}.env[{index}].value", problem)
    for index, mount in enumerate(_items(container, "volumeMounts")):
        if is_trainer and mount.get("mountPath") == names.PLAN_MOUNT:
            yield SpecError(
                f"{path}.volumeMounts[{index}].mountPath", f"{names.PLAN_MOUNT} holds the plan; use another path"
            )
    yield from _check_ports(f"{path}.ports", _items(container, "ports"), is_trainer=is_trainer)
    yield from _check_resources(f"{path}.resources", container.get("resources", {}), spec, is_trainer=is_trainer)


def _check_ports(path: str, ports: list[Mapping[str, Any]], *, is_trainer: bool) -> Iterator[SpecError]:
    for index, port in enumerate(ports):
        number, name = port.get("containerPort"), port.get("name")
        own = _OWN_PORTS.get(number) if isinstance(number, int) else None
        if own is not None and not (is_trainer and name in {None, own}):
            yield SpecError(f"{path}[{index}].containerPort", f"{number} is the trainer's {own} port; use another")
        elif own is None and name in _OWN_PORTS.values():
            yield SpecError(f"{path}[{index}].name", f'"{name}" is the name of a port of the trainer; use another')


def _check_resources(path: str, resources: Any, spec: PipelineJobSpec, *, is_trainer: bool) -> Iterator[SpecError]:
    for part in ("requests", "limits"):
        amounts = _mapping(resources).get(part, {})
        if not isinstance(amounts, Mapping):
            yield SpecError(f"{path}.{part}", f"{amounts!r} is no mapping of resources to quantities")
            continue
        for name, amount in amounts.items():
            here = f"{path}.{part}[{name}]"
            if not is_quantity(amount):
                yield SpecError(
                    here, f"{amount!r} is no quantity; write a number and perhaps a suffix, as in 250m or 4Gi"
                )
            elif name == spec.gpu_resource and is_trainer:
                yield from _check_gpus(here, str(amount), spec)


def _check_gpus(path: str, amount: str, spec: PipelineJobSpec) -> Iterator[SpecError]:
    if spec.device is not Device.GPU:
        yield SpecError(path, f"{amount} GPUs are asked for, but spec.device is cpu; set it to gpu, or leave this out")
    elif spec.parallelism.tensor is None:
        yield SpecError(path, f"{amount} GPUs may not be what is chosen; set spec.parallelism.tensor, or leave it out")
    elif amount != str(spec.parallelism.tensor):
        stated = f"each stage computes on spec.parallelism.tensor = {spec.parallelism.tensor} of them"
        yield SpecError(path, f"{amount} GPUs cannot be: {stated}; make them equal, or leave this out")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _items(parent: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    """Return the items as mappings; one that is no mapping is reported once, by _check_keyed_list."""
    items = parent.get(field)
    return [_mapping(item) for item in items] if isinstance(items, list | tuple) else []
