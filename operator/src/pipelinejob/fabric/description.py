"""The form in which a person describes a cluster: types of what `fabric.py` makes nodes of."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from pipelinejob.base.values import Value
from pipelinejob.spec.network.topology_profile import MAX_LEVELS, Link

MAX_NODES = 1_000_000
MUCH = "1E"  # of what the description does not limit

_Count = Annotated[int, Field(ge=1, le=MAX_NODES)]
_Name = Annotated[str, Field(min_length=1, max_length=63, pattern="^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")]


class Machine(Value):
    """What one node has."""

    product: str | None = None  # as GPU feature discovery writes it: NVIDIA-H100-80GB-HBM3
    gpus: Annotated[int, Field(ge=0, le=1024)] = 8
    gpu_resource: str = "nvidia.com/gpu"
    cpu: str | int | float = MUCH
    memory: str | int = MUCH
    pods: Annotated[int, Field(ge=1)] = 110
    resources: dict[str, str | int] = Field(default_factory=dict)  # others, as in rdma/hca
    labels: dict[str, str] = Field(default_factory=dict)
    rails: Annotated[int, Field(ge=1, le=64)] | None = None  # of the fabric; GPU i has its NIC on rail i


class NamedLevel(Value):
    """A level with label keys of its own."""

    name: _Name
    keys: tuple[str, ...] = ()
    optional: bool = False


class Group(Value):
    """Domains of one make.

    Every further field is a level, and says which of its domains: one by name, so
    many by number, several by name, or, of the finest level, one of each size (in nodes).
    """

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, validate_by_name=True)

    nodes: _Count | None = None  # in each of the innermost domains; 1 if unset
    node: dict[str, Any] = Field(default_factory=dict)  # what is unlike the description's `node`

    @property
    def extents(self) -> dict[str, Any]:
        """Return what is said of each level, unread."""
        return self.__pydantic_extra__ or {}


class Busy(Value):
    """What is taken: of a domain, or everywhere, all nodes or `nodes` of them; of each all GPUs or `gpus`.

    The first by name, or, with a seed, scattered.
    """

    inside: Annotated[str | None, Field(alias="in")] = None
    nodes: _Count | None = None
    gpus: _Count | None = None
    seed: int | None = None


class Description(Value):
    """A cluster."""

    name: _Name = "fabric"  # of the profile that its levels make
    profile: str | None = None  # a preset whose label keys its levels have
    levels: Annotated[tuple[NamedLevel, ...], Field(max_length=MAX_LEVELS)] = ()  # coarse to fine
    links: dict[str, Link] = Field(default_factory=dict)  # by level; `cluster`: between the coarsest domains
    node: dict[str, Any] = Field(default_factory=dict)  # what every node has: see `Machine`
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]
    busy: tuple[Busy, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        """Take a name alone for what it names."""
        if not isinstance(value, dict):
            return value
        busy = value.get("busy", ())
        return {
            **value,
            "levels": _each_named("name", value.get("levels", ())),
            "busy": _each_named("in", [busy] if isinstance(busy, str | dict) else busy),
            "links": _links_named(value.get("links", {})),
        }


def _each_named(field: str, values: Any) -> Any:
    return [_named(field, each) for each in values] if isinstance(values, list | tuple) else values


def _links_named(links: Any) -> Any:
    return {level: _named("kind", link) for level, link in links.items()} if isinstance(links, dict) else links


def _named(field: str, value: Any) -> Any:
    return {field: value} if isinstance(value, str) else value
