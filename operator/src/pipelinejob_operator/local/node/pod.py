"""What a pod means on one machine: the command, environment, paths and ports that its process gets."""

import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelinejob.base import names
from pipelinejob_operator.cluster import InvalidError, Object

_TRAINER = (sys.executable, "-m", "pipelinejob_trainer")
_IMAGE_COMMAND = "pipelinejob-trainer"  # what the trainer's image calls it
_DEFAULT_GRACE_S = 30.0
_LOCAL_VOLUMES = frozenset({"configMap", "downwardAPI", "emptyDir", "hostPath", "persistentVolumeClaim"})
# An image has no home and no user; a person has both, and may keep data there.
_A_PERSONS_OWN = frozenset({"HOME", "USER"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the machine lends to one pod."""

    mounts: Mapping[str, Path]  # mount path in the pod -> folder here
    ports: Mapping[int, int]  # port in the pod -> port here
    rendezvous: str
    output: Path
    termination_log: Path
    inherited: Mapping[str, str]
    threads: int
    gpus: tuple[str, ...] = ()


def trainer(pod: Object) -> Mapping[str, Any]:
    """Return the pod's trainer container.

    Raises InvalidError if there is none.
    """
    for container in pod["spec"].get("containers", ()):
        if container["name"] == names.CONTAINER_TRAINER:
            found: Mapping[str, Any] = container
            return found
    raise InvalidError(f"pod {pod['metadata']['name']} has no container named {names.CONTAINER_TRAINER!r}")


def check(pod: Object) -> None:
    """Refuse what only a cluster has, before anything of the gang starts.

    Raises InvalidError.
    """
    container = trainer(pod)
    for entry in container.get("env", ()):
        _value(entry, pod)
    if container.get("envFrom"):
        raise InvalidError("envFrom does not work without a cluster; name the variables in `env`")
    for volume in pod["spec"].get("volumes", ()):
        if not _LOCAL_VOLUMES & volume.keys():
            known = ", ".join(sorted(_LOCAL_VOLUMES))
            raise InvalidError(f"volume {volume['name']} does not work without a cluster; only {known} do")


def field_files(pod: Object, volume: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of a volume that shows the pod's own fields."""
    return {item["path"]: _field(pod, item["fieldRef"]["fieldPath"]) for item in volume["downwardAPI"].get("items", ())}


def is_gated(pod: Object) -> bool:
    """Tell whether the pod still waits for its gang."""
    return bool(pod["spec"].get("schedulingGates"))


def attempt(pod: Object) -> str:
    """Return the attempt that the pod belongs to, as its label says."""
    return str(pod["metadata"].get("labels", {}).get(names.LABEL_ATTEMPT, "1"))


def grace_s(pod: Object) -> float:
    """Return the seconds between a polite and an impolite end."""
    return float(pod["spec"].get("terminationGracePeriodSeconds") or _DEFAULT_GRACE_S)


def command(pod: Object, surroundings: Surroundings) -> tuple[str, ...]:
    """Return the command line: the template's own if it has one, else what the trainer's image would run."""
    container = trainer(pod)
    own = tuple(container.get("command") or ())
    arguments = tuple(container.get("args") or ())
    if not own or own == (_IMAGE_COMMAND,):
        own, arguments = _TRAINER, arguments or ("run",)
    return tuple(_moved(word, surroundings.mounts) for word in (*own, *arguments))


def environment(pod: Object, surroundings: Surroundings) -> dict[str, str]:
    """Return the process's environment: the pod's, its paths, ports and addresses turned into this machine's."""
    variables = dict(surroundings.inherited)
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables.get('PATH', '/usr/bin:/bin')}"
    variables["OMP_NUM_THREADS"] = str(surroundings.threads)
    variables["PYTHONUNBUFFERED"] = "1"
    if surroundings.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(surroundings.gpus)
    for entry in trainer(pod).get("env", ()):
        if entry["name"] in _A_PERSONS_OWN & variables.keys():
            continue
        variables[entry["name"]] = _moved(_value(entry, pod), surroundings.mounts)
    port = int(variables.get(names.ENV_METRICS_PORT) or names.PORT_METRICS)
    variables[names.ENV_METRICS_PORT] = str(surroundings.ports.get(port, port))
    variables |= _of_front(pod, surroundings)
    variables[names.ENV_RENDEZVOUS] = surroundings.rendezvous
    variables[names.ENV_OUTPUT] = str(surroundings.output)
    variables[names.ENV_TERMINATION_LOG] = str(surroundings.termination_log)
    variables.setdefault(names.ENV_CHECKPOINTS, str(surroundings.mounts[names.CHECKPOINT_MOUNT]))
    return variables


def is_one_of_several(pod: Object) -> bool:
    """Tell whether the pod is of a chain of a job that serves, beside which there may be others."""
    labels = pod["metadata"].get("labels") or {}
    return labels.get(names.LABEL_SERVICE, labels.get(names.LABEL_JOB)) != labels.get(names.LABEL_JOB)


def front_port(pod: Object) -> int | None:
    """Return the port that clients ask in a cluster; None if they ask another stage."""
    if (pod["metadata"].get("labels") or {}).get(names.LABEL_STAGE) != "0":
        return None
    declared = trainer(pod).get("ports", ())
    return next((int(each["containerPort"]) for each in declared if each.get("name") == names.PORT_FRONT_NAME), None)


def _of_front(pod: Object, surroundings: Surroundings) -> dict[str, str]:
    """Where a front listens: on a port of its own where others want the same, and those know at once when it ends."""
    port = front_port(pod)
    if port is None:
        return {}
    if not is_one_of_several(pod):
        return {names.ENV_LEAVING_S: "0"}
    return {names.ENV_LEAVING_S: "1", names.ENV_FRONT_PORT: str(surroundings.ports[port])}


def requested(pod: Object, resource: str) -> int:
    """Return how many of a countable resource the trainer asks for."""
    resources = trainer(pod).get("resources", {})
    return int((resources.get("limits") or {}).get(resource) or (resources.get("requests") or {}).get(resource) or 0)


def container_ports(pod: Object) -> tuple[int, ...]:
    """Return the ports that the trainer listens on in a cluster, the metrics port always among them."""
    declared = [int(port["containerPort"]) for port in trainer(pod).get("ports", ())]
    return tuple(dict.fromkeys((*declared, names.PORT_METRICS)))


def free_port() -> int:
    """Return a TCP port to listen on, which the kernel gives to nobody else for a minute.

    One that was merely free could be taken by any connection before its server comes. This one has
    a connection that is ended and waits (TIME_WAIT): the kernel passes it over, while a server,
    which sets SO_REUSEADDR, may have it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as client:
            listener.accept()[0].close()  # who closes first is left waiting
            client.recv(1)
    return int(address[1])


def _value(entry: Mapping[str, Any], pod: Object) -> str:
    if "valueFrom" not in entry:
        return str(entry.get("value", ""))
    path = (entry["valueFrom"].get("fieldRef") or {}).get("fieldPath")
    if path is None:
        raise InvalidError(f"env {entry['name']}: only `value` and `valueFrom.fieldRef` work without a cluster")
    return _field(pod, path)


def _field(pod: Object, path: str) -> str:
    for kind in ("labels", "annotations"):
        if path.startswith(f"metadata.{kind}['"):
            return str(pod["metadata"].get(kind, {}).get(path.split("'")[1], ""))
    if path in {"status.podIP", "status.hostIP"}:
        return "127.0.0.1"
    found: Any = pod
    for name in path.split("."):
        found = found.get(name, "") if isinstance(found, Mapping) else ""
    return str(found)


def _moved(text: str, mounts: Mapping[str, Path]) -> str:
    """Turn a path in the pod into the path here; anything else stays as it is."""
    for mount in _longest_first(mounts):
        if text == mount or text.startswith(mount + "/"):
            return str(mounts[mount]) + text[len(mount) :]
    return text


def _longest_first(mounts: Mapping[str, Path]) -> Sequence[str]:
    return sorted(mounts, key=len, reverse=True)
