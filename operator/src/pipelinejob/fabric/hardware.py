"""Device kinds and link kinds by their data sheets: what plans are priced with before anything was measured.

The data stands in `hardware.toml`, beside this file; a user's file of the same form extends it.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.spec.job import Device, Precision

CLUSTER = "cluster"  # the level above all of a topology's
_CPU = "cpu-core"
_UNKNOWN_GPU = "H100-SXM"  # what a GPU that no kind is known of is reckoned as
_OWN_LINK, _OWN_NETWORK = "link", "network"


class HardwareError(PipelineJobError):
    """Data on hardware that cannot be used; the one sentence says what stands where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkKind:
    """A link between two devices, in one direction, as large messages find it."""

    name: str
    latency_s: float
    bytes_per_s: float

    def seconds(self, num_bytes: float) -> float:
        """Return how long a message takes."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """A device by its data sheet. `link` joins devices of one node, `network` is its usual port to other nodes."""

    name: str
    products: tuple[str, ...] = ()  # as node labels name it
    flops: Mapping[Precision, float]  # peak operations a second
    attained: float  # share of them that the layers of a transformer attain in training
    memory_bytes: int | None = None  # None: shared with others, not ours to divide
    memory_bytes_per_s: float
    link: str
    network: str = "infiniband-ndr"

    def attained_flops(self, precision: Precision) -> float:
        """Return the operations a second that training gets."""
        return self.attained * self.flops[precision]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What is known of devices and links.

    `levels` names the link kind between two ranks whose closest common domain is of that level of
    a topology, `across` the one between domains of a topology's coarsest level; either may say
    `link` or `network`, for the device's own.
    """

    devices: Mapping[str, DeviceKind] = field(default_factory=dict)
    links: Mapping[str, LinkKind] = field(default_factory=dict)
    levels: Mapping[str, str] = field(default_factory=dict)
    across: Mapping[str, str] = field(default_factory=dict)

    def extended(self, other: "Hardware") -> "Hardware":
        """Add another's kinds and levels to these; of two with one name the other's counts.

        Raises HardwareError if something then names a link kind that is not there.
        """
        both = Hardware(
            devices={**self.devices, **other.devices},
            links={**self.links, **other.links},
            levels={**self.levels, **other.levels},
            across={**self.across, **other.across},
        )
        both._check_links()
        return both

    def device_of(self, product: str) -> DeviceKind | None:
        """Return the kind of a device that a node label speaks of (`NVIDIA-H100-80GB-HBM3`); None if it is not known.

        The longest product name that stands in it counts, whole words only: an RTX-A4000 is no
        A40. A part of a device (`-MIG-1g.10gb`) is none of these.
        """
        if product not in self._found:  # one product stands on thousands of nodes
            self._found[product] = self._find(_words(product))
        return self._found[product]

    def reckoned_as(self, device: Device, product: str = "") -> DeviceKind:
        """Return what a device is reckoned as: a processor core, or the GPU that `product`, a kind or a label, names.

        A GPU that is not known, or of which nothing was said, is reckoned as an H100 without a
        bound on its memory.
        """
        if device is Device.CPU:
            return self.devices[_CPU]
        known = self.devices.get(product) or self.device_of(product)
        return known or replace(self.devices[_UNKNOWN_GPU], memory_bytes=None)

    def link_between(self, levels: Sequence[str], depth: int, device: DeviceKind | None = None) -> LinkKind:
        """Return the link between two ranks whose closest common domain has a depth in a topology of these levels.

        Depth 0 is the cluster, d a domain of levels[d - 1], len(levels) + 1 a node below them all.
        """
        device = device or self.reckoned_as(Device.GPU)
        if depth == 0 and levels and levels[0] in self.across:
            return self._named(self.across[levels[0]], device)
        level = [CLUSTER, *levels, "node"][depth]
        return self._named(self.levels.get(level, _OWN_NETWORK), device)

    def link_of(self, device: DeviceKind) -> LinkKind:
        """Return the link between devices of one node."""
        return self.links[device.link]

    def network_of(self, device: DeviceKind) -> LinkKind:
        """Return the link of a device's usual port to other nodes."""
        return self.links[device.network]

    def _named(self, name: str, device: DeviceKind) -> LinkKind:
        return self.links[{_OWN_LINK: device.link, _OWN_NETWORK: device.network}.get(name, name)]

    def _find(self, words: tuple[str, ...]) -> DeviceKind | None:
        if "mig" in words:
            return None
        for name, kind in self._by_product:
            if any(words[start : start + len(name)] == name for start in range(len(words))):
                return kind
        return None

    @cached_property
    def _found(self) -> dict[str, DeviceKind | None]:
        return {}

    @cached_property
    def _by_product(self) -> tuple[tuple[tuple[str, ...], DeviceKind], ...]:
        """Return every product's words with its kind, the longest name first; of two alike the later kind."""
        known = {_words(product): kind for kind in self.devices.values() for product in kind.products}
        return tuple(sorted(known.items(), key=lambda item: -len("-".join(item[0]))))

    def _check_links(self) -> None:
        own = {_OWN_LINK, _OWN_NETWORK}
        wanted = [
            (f"devices.{kind.name}", name) for kind in self.devices.values() for name in (kind.link, kind.network)
        ]
        for table, names in (("levels", self.levels), ("across", self.across)):
            wanted += [(f"{table}.{level}", name) for level, name in names.items() if name not in own]
        for where, name in wanted:
            if name not in self.links:
                known = ", ".join(sorted(self.links))
                raise HardwareError(f"{where}: no link kind is called {name}; name one of {known}, or describe it")


@cache
def default() -> Hardware:
    """Return what is known without a user's file."""
    text = resources.files("pipelinejob.fabric").joinpath("hardware.toml").read_text(encoding="utf-8")
    return Hardware().extended(parse(text))


def parse(text: str) -> Hardware:
    """Read a file of the form of `hardware.toml`.

    What it names but does not describe may stand in the file that it extends: `extended` looks.
    Raises HardwareError.
    """
    try:
        read = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise HardwareError(f"is no TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise HardwareError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return Hardware(
        devices={name: kind.device(name) for name, kind in read.devices.items()},
        links={name: kind.link(name) for name, kind in read.links.items()},
        levels=read.levels,
        across=read.across,
    )


def _words(product: str) -> tuple[str, ...]:
    return tuple(re.split(r"[^a-z0-9.]+", product.casefold()))


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Device(_Table):
    products: tuple[str, ...] = ()
    flops: dict[Precision, Annotated[float, Field(gt=0)]]
    attained: float = Field(gt=0, le=1)
    memory_bytes: float | None = Field(default=None, gt=0)
    memory_bytes_per_s: float = Field(gt=0)
    link: str
    network: str

    @field_validator("flops")
    @classmethod
    def _is_complete(cls, flops: dict[Precision, float]) -> dict[Precision, float]:
        for precision in Precision:
            if precision not in flops:
                raise ValueError(f"{precision} is missing")
        return flops

    def device(self, name: str) -> DeviceKind:
        values: dict[str, Any] = self.model_dump(exclude={"memory_bytes"})
        memory = None if self.memory_bytes is None else int(self.memory_bytes)
        return DeviceKind(name=name, memory_bytes=memory, **values)


class _Link(_Table):
    latency_s: float = Field(ge=0)
    peak_bytes_per_s: float = Field(gt=0)
    attained: float = Field(default=1.0, gt=0, le=1)

    def link(self, name: str) -> LinkKind:
        return LinkKind(name=name, latency_s=self.latency_s, bytes_per_s=self.attained * self.peak_bytes_per_s)


class _File(_Table):
    devices: dict[str, _Device] = {}
    links: dict[str, _Link] = {}
    levels: dict[str, str] = {}
    across: dict[str, str] = {}
