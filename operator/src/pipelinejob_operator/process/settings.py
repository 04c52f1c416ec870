"""What the operator process is told: read once from flags and environment, frozen, passed down. No other file does."""

import argparse
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelinejob.fabric import hardware
from pipelinejob.fabric.hardware import Hardware
from pipelinejob_operator.objects.controller_settings import ControllerSettings

_PREFIX = "PIPELINEJOB_OPERATOR_"
_LEVELS = ("debug", "info", "warning", "error")
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """The operator process's own settings; the controller's stand in `controller`."""

    controller: ControllerSettings
    kubeconfig: Path | None  # None: the service account of the pod this runs in
    context: str | None
    namespace: str  # of the Lease
    lease_name: str  # one for all operators that do the same work
    identity: str  # holds the Lease; unique among all operators
    leader_election: bool
    watch_namespaces: tuple[str, ...]  # whose jobs this operator runs; none: all
    kueue: bool  # whether jobs with a queue ask Kueue
    provisioning: bool  # whether jobs may ask an autoscaler for nodes
    hardware: Hardware  # what plans know of devices and links
    metrics_address: str
    metrics_port: int
    workers: int
    kube_api_qps: float  # requests a second to the API server; 0: no rate
    kube_api_burst: int
    log_level: str


def read(arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> OperatorSettings:
    """Read flags (default: the process's own) over the environment.

    Ends the process with code 2 and one sentence on a value that cannot be.
    """
    environment = os.environ if environment is None else environment
    given = _parser(environment).parse_args(arguments)
    return OperatorSettings(
        controller=ControllerSettings(
            trainer_image=given.trainer_image,
            cluster_domain=given.cluster_domain,
            progress_interval_s=given.progress_interval_seconds,
            gang_timeout_s=given.gang_timeout_seconds,
            start_timeout_s=given.start_timeout_seconds,
        ),
        kubeconfig=_kubeconfig(given.kubeconfig, environment),
        context=given.context or None,
        namespace=given.namespace,
        lease_name=given.lease_name,
        identity=given.identity,
        leader_election=given.leader_election,
        watch_namespaces=given.watch_namespaces,
        kueue=given.kueue,
        provisioning=given.provisioning,
        hardware=given.hardware,
        metrics_address=given.metrics_address,
        metrics_port=given.metrics_port,
        workers=given.workers,
        kube_api_qps=given.kube_api_qps,
        kube_api_burst=given.kube_api_burst,
        log_level=given.log_level,
    )


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipelinejob-operator",
        description="Places, starts, watches and mends PipelineJobs on a Kubernetes cluster.",
        epilog=f"Each flag may also be given as {_PREFIX}FLAG in the environment; the flag wins.",
    )

    def option(flag: str, kind: Callable[[str], object], default: str, text: str) -> None:
        # argparse converts a default that is a string, so the environment gets the same sentences
        # as flags.
        variable = _PREFIX + flag.upper().replace("-", "_")
        parser.add_argument(f"--{flag}", type=kind, default=environment.get(variable) or default, help=text)

    option("kubeconfig", str, "", "kubeconfig file; default: KUBECONFIG, else in a pod its service account")
    option("context", str, "", "context of the kubeconfig; default: its current one")
    option("namespace", str, "default", "namespace of the leader's Lease (%(default)s)")
    option(
        "lease-name", str, "pipelinejob-operator", "name of the Lease; of those that share it one works (%(default)s)"
    )
    option("identity", str, f"{socket.gethostname()}-{os.getpid()}", "name of this operator among its replicas")
    option(
        "trainer-image", str, "pipelinejob/trainer:latest", "image of stages whose template names none (%(default)s)"
    )
    option("cluster-domain", str, "cluster.local", "the cluster's DNS domain (%(default)s)")
    option("progress-interval-seconds", _positive, "10", "between status writes that bring only numbers (%(default)s)")
    option("gang-timeout-seconds", _positive, "300", "a gang not bound by then gives its place back (%(default)s)")
    option("start-timeout-seconds", _positive, "300", "a stage not started by then, on its node, failed (%(default)s)")
    option("hardware", _hardware, "", "TOML file of device kinds and link kinds that adds to the packaged ones")
    option("log-level", _level, "info", f"one of {', '.join(_LEVELS)} (%(default)s)")
    option("metrics-address", str, "0.0.0.0", "where /metrics, /healthz and /readyz are served (%(default)s)")  # noqa: S104  # probes come from the node
    option("metrics-port", _port, "8080", "port of the same (%(default)s)")
    option("workers", _count, "16", "jobs worked on at a time (%(default)s)")
    option(
        "kube-api-qps",
        _rate,
        "400",
        "requests a second to the API server in the long run, 0 for no limit (%(default)s)",
    )
    option("kube-api-burst", _count, "2000", "requests that may go at once after a pause (%(default)s)")
    option("watch-namespaces", _names, "", "namespaces whose jobs it runs, joined by commas; all by default")
    switches = {
        "kueue": "jobs with the label kueue.x-k8s.io/queue-name wait for Kueue's quota; needs rights on its objects",
        "provisioning": "jobs with spec.scheduling.provisioning ask an autoscaler for nodes; needs rights on "
        "ProvisioningRequests and PodTemplates",
    }
    for switch, text in switches.items():
        is_on = environment.get(f"{_PREFIX}{switch.upper()}") == "true"
        parser.add_argument(f"--{switch}", action="store_true", default=is_on, help=text)
    parser.add_argument(
        "--no-leader-election", dest="leader_election", action="store_false", help="lead at once; for a lone operator"
    )
    return parser


def _kubeconfig(given: str, environment: Mapping[str, str]) -> Path | None:
    if given:
        return Path(given)
    if environment.get("KUBECONFIG"):
        return Path(environment["KUBECONFIG"])
    in_pod = "KUBERNETES_SERVICE_HOST" in environment
    return None if in_pod else Path.home() / ".kube" / "config"


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0; write for example 10")
    return number


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of requests a second; write for example 500, or 0")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; use 1 to {_MAX_PORT}, or 0 for any free one")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.strip() for each in text.split(",") if each.strip()))


def _hardware(file: str) -> Hardware:
    if not file:
        return hardware.default()
    try:
        return hardware.default().extended(hardware.parse(Path(file).read_text(encoding="utf-8")))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{file}: {error.strerror}") from error
    except (UnicodeDecodeError, hardware.HardwareError) as error:
        raise argparse.ArgumentTypeError(f"{file}: {error}") from error


def _level(text: str) -> str:
    if text.lower() not in _LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r} is no log level; use one of {', '.join(_LEVELS)}")
    return text.lower()
