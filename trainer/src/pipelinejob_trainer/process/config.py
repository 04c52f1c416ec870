"""What a stage's process reads from its environment, here only; everything else is in the plan."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipelinejob.base import names
from pipelinejob.contract.plan import Plan
from pipelinejob.contract.trained import Trained
from pipelinejob_trainer.base.errors import UserError

_DEFAULT_GRACE_S = 30.0
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the ranks meet."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether all ranks are on this machine."""
        return self.host in _LOOPBACK


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One rank's place in its job, and the files and ports it was given."""

    plan: Path
    namespace: str
    job: str
    stage: int
    replica: int
    attempt: int
    tensor: int = 0
    rendezvous: Address
    metrics_port: int
    checkpoints: Path
    output: Path | None
    termination_log: Path | None
    grace_s: float
    leaving_s: float = 0.0  # clients may still come so long after this process is asked to stop
    front_port: int | None = None  # of the HTTP front, where it is not the plan's
    token: str | None = None  # of who may tell this process who meets

    @property
    def pod(self) -> str:
        """This rank's pod."""
        return names.pod_name(self.job, replica=self.replica, stage=self.stage)

    @property
    def process(self) -> str:
        """This rank's process: of those that share a stage's layers, all but the first say which they are."""
        return f"{self.pod}-t{self.tensor}" if self.tensor else self.pod


def read_config(environment: Mapping[str, str] | None = None) -> Config:
    """Read the environment of `run`.

    Raises UserError naming the variable that is missing or wrong.
    """
    variables = os.environ if environment is None else environment
    return Config(
        plan=Path(_text(variables, names.ENV_PLAN)),
        namespace=_text(variables, names.ENV_NAMESPACE),
        job=_text(variables, names.ENV_JOB),
        stage=_number(variables, names.ENV_STAGE),
        replica=_number(variables, names.ENV_REPLICA),
        attempt=_number(variables, names.ENV_ATTEMPT),
        tensor=read_tensor_rank(variables) or 0,
        rendezvous=_address(variables, names.ENV_RENDEZVOUS),
        metrics_port=read_metrics_port(variables),
        checkpoints=Path(_text(variables, names.ENV_CHECKPOINTS)),
        output=_path(variables, names.ENV_OUTPUT),
        termination_log=read_termination_log(variables),
        grace_s=read_grace_s(variables),
        leaving_s=float(_number(variables, names.ENV_LEAVING_S, default=0)),
        front_port=_number(variables, names.ENV_FRONT_PORT, default=0) or None,
        token=variables.get(names.ENV_TOKEN) or None,
    )


def read_tensor_rank(variables: Mapping[str, str]) -> int | None:
    """Return this rank's number among those that share its layers; None if it is to start them, or there is one."""
    return _number(variables, names.ENV_TENSOR) if variables.get(names.ENV_TENSOR) else None


def read_spare(variables: Mapping[str, str]) -> int | None:
    """Return the number of a spare, which is told its rank later; None for any other process."""
    return _number(variables, names.ENV_SPARE) if variables.get(names.ENV_SPARE) else None


def read_attempt(variables: Mapping[str, str]) -> int:
    """Return the attempt that this process is of."""
    return _number(variables, names.ENV_ATTEMPT)


def read_metrics_port(variables: Mapping[str, str]) -> int:
    """Return the port of the HTTP server."""
    return _number(variables, names.ENV_METRICS_PORT, default=names.PORT_METRICS)


def read_grace_s(variables: Mapping[str, str]) -> float:
    """Return the seconds that this process has to stop."""
    return float(_number(variables, names.ENV_GRACE_S, default=int(_DEFAULT_GRACE_S)))


def read_termination_log(environment: Mapping[str, str] | None = None) -> Path | None:
    """Return where the termination message goes.

    Read first, so that errors in the rest can be reported.
    """
    return _path(os.environ if environment is None else environment, names.ENV_TERMINATION_LOG)


def read_plan(path: Path) -> Plan:
    """Read the plan.

    Raises UserError when it is missing, damaged or of another version.
    """
    try:
        return Plan.from_json(path.read_bytes())
    except OSError as error:
        raise UserError("PlanUnreadable", f"plan {path}: {error.strerror}; mount or write the plan there") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "plan"
        raise UserError(
            "PlanInvalid",
            f"plan {path}: {where}: {first['msg']}; the operator and the trainer must be of the same version",
        ) from error


def check_place(config: Config, plan: Plan) -> None:
    """Raise UserError where a plan has no rank of this number.

    Where gangs change in memory, stages and replicas that join are not of the plan yet; of a job
    that serves each replica is a chain of its own, with a plan of one.
    """
    degrees = plan.parallelism
    places = [(names.ENV_TENSOR, config.tensor, degrees.tensor, "tensor")]
    if plan.recovery is None:
        places.append((names.ENV_STAGE, config.stage, degrees.pipeline, "pipeline"))
        if plan.serving is None:
            places.append((names.ENV_REPLICA, config.replica, degrees.data, "data"))
    for name, number, count, field in places:
        if number >= count:
            raise UserError(
                "BadEnvironment",
                f"{name}: {number}, but the plan has {field}: {count}, whose last is {count - 1}; plan and pods must be"
                " of the same job",
            )


def read_trained(path: Path) -> Trained:
    """Read what a job trained.

    Raises UserError when it is missing, or of another version.
    """
    try:
        return Trained.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError("PlanUnreadable", f"{path}: {error.strerror}; write the job's model there") from error
    except ValidationError as error:
        raise UserError("PlanInvalid", f"{path}: {error.errors()[0]['msg']}; both must be of one version") from error


def read_threads(environment: Mapping[str, str] | None = None) -> int | None:
    """Return how many threads torch may use here (OMP_NUM_THREADS); None if that is not set."""
    text = (os.environ if environment is None else environment).get("OMP_NUM_THREADS", "")
    return int(text) if text.isascii() and text.isdigit() and int(text) else None


def silence_profiler() -> None:
    """Keep torch's profiler from logging each start; call it before torch is imported."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def prepare_environment(rendezvous: Address) -> None:
    """Set variables that torch's libraries read, before they do; what the user set stays."""
    # A stage that waits for another must fail when that one dies, not hang: NCCL looks up from a
    # collective only then.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    if rendezvous.is_loopback and os.uname().sysname == "Linux":
        # Else gloo asks DNS for this host's name, which a laptop's resolver may not know.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _text(variables: Mapping[str, str], name: str) -> str:
    value = variables.get(name, "")
    if not value:
        raise UserError("BadEnvironment", f"{name} is not set; the operator sets it, so run the trainer through it")
    return value


def _number(variables: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    if default is not None and not variables.get(name):
        return default
    text = _text(variables, name)
    if not (text.isascii() and text.isdigit()):
        raise UserError("BadEnvironment", f"{name}: {text!r} is no number; use 0 or more, in digits")
    return int(text)


def _path(variables: Mapping[str, str], name: str) -> Path | None:
    value = variables.get(name)
    return Path(value) if value else None


def _address(variables: Mapping[str, str], name: str) -> Address:
    text = _text(variables, name)
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError("BadEnvironment", f"{name}: {text!r} is no address; write host:port")
    return Address(host=host.strip("[]"), port=int(port))
