"""Nodes with cables: network namespaces behind a bridge, in a namespace of this process's own, for root on Linux."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_NEW_MOUNTS, _NEW_NETWORK = 0x00020000, 0x40000000
_BRIDGE, _HOST = "soak", "10.77.0.1"
INTERFACE = "eth0"
SLOW = ("tbf", "rate", "1mbit", "burst", "32kbit", "latency", "1500ms")  # what does not fit is dropped


def why_not() -> str | None:
    """Return why there can be no cables and disks of the soak's own here."""
    if os.geteuid() != 0:
        return "only root makes network namespaces and mounts"
    missing = [name for name in ("ip", "tc", "mount") if shutil.which(name) is None]
    return f"{', '.join(missing)} cannot be found" if missing else None


def go_apart() -> None:
    """Leave this machine's network and mounts for ones of this process's own; before it has threads or children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS | _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "unshare")
    os.environ["no_proxy"] = "*"  # no proxy reaches what is in here
    _do("mount", "--make-rprivate", "/")
    Path("/run/netns").mkdir(exist_ok=True)
    _do("mount", "-t", "tmpfs", "none", "/run/netns")
    _do("ip", "link", "set", "lo", "up")
    _do("ip", "link", "add", _BRIDGE, "type", "bridge")
    _do("ip", "addr", "add", f"{_HOST}/16", "dev", _BRIDGE)
    _do("ip", "link", "set", _BRIDGE, "up")


@dataclass(slots=True)
class Wires:
    """A node for each pod; one that is cut off gets another node when it is started anew."""

    host: str = _HOST
    _nodes: dict[str, int] = field(default_factory=dict)
    _cut: set[int] = field(default_factory=set)
    _count: int = 0

    def attach(self, pod: str) -> Path:
        """Return the network of a pod's node."""
        if pod not in self._nodes or self._nodes[pod] in self._cut:
            self._nodes[pod] = self._node()
        return Path(f"/run/netns/n{self._nodes[pod]}")

    def address(self, pod: str) -> str:
        number = self._nodes[pod]
        return f"10.77.{number // 200 + 1}.{number % 200 + 1}"

    def cut(self, pod: str) -> None:
        """Pull the cable of a pod's node; who is told of it at neither end."""
        number = self._nodes[pod]
        _do("ip", "link", "set", f"v{number}", "nomaster")
        self._cut.add(number)

    def mend(self) -> None:
        """Plug all cables in again."""
        for number in self._cut:
            _do("ip", "link", "set", f"v{number}", "master", _BRIDGE)

    def slow(self, pod: str) -> None:
        """Let a pod's node receive and send a megabit a second."""
        number = self._nodes[pod]
        _do("tc", "qdisc", "replace", "dev", f"v{number}", "root", *SLOW)
        _do("ip", "netns", "exec", f"n{number}", "tc", "qdisc", "replace", "dev", INTERFACE, "root", *SLOW)

    def quicken(self, pod: str) -> None:
        number = self._nodes[pod]
        _do("tc", "qdisc", "del", "dev", f"v{number}", "root")
        _do("ip", "netns", "exec", f"n{number}", "tc", "qdisc", "del", "dev", INTERFACE, "root")

    def _node(self) -> int:
        number, self._count = self._count, self._count + 1
        node, cable = f"n{number}", f"v{number}"
        _do("ip", "netns", "add", node)
        _do("ip", "link", "add", cable, "type", "veth", "peer", "name", INTERFACE, "netns", node)
        _do("ip", "link", "set", cable, "master", _BRIDGE, "up")
        address = f"10.77.{number // 200 + 1}.{number % 200 + 1}/16"
        _do("ip", "-n", node, "addr", "add", address, "dev", INTERFACE)
        _do("ip", "-n", node, "link", "set", INTERFACE, "up")
        _do("ip", "-n", node, "link", "set", "lo", "up")
        return number


@dataclass(slots=True)
class Disk:
    """A small file system of its own, that can be filled."""

    folder: Path
    size: str = "48m"

    def mount(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _do("mount", "-t", "tmpfs", "-o", f"size={self.size}", "none", self.folder)

    def fill(self) -> None:
        with (self.folder / "ballast").open("ab", buffering=0) as ballast:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        ballast.write(bytes(size))
                except OSError:  # full
                    continue

    def free(self) -> None:
        (self.folder / "ballast").unlink()


def _do(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
