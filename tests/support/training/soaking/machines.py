"""Where the ranks of a soak run: forked, each on a node of its own where nodes can be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.training.forking.forks import Forks
from support.training.gangs import Running
from support.training.soaking.wires import INTERFACE, Wires


@dataclass(slots=True)
class Nodes:
    """Forked ranks; with `wires`, each behind a cable."""

    forks: Forks
    wires: Wires | None = None
    started: list[Running] = field(default_factory=list)

    def address(self, pod: str) -> str:
        return "127.0.0.1" if self.wires is None else self.wires.address(pod)

    def rendezvous(self) -> str:
        return "127.0.0.1" if self.wires is None else self.wires.host

    def launch(self, pod: str, environment: Mapping[str, str], log: Path) -> Running:
        network = None if self.wires is None else self.wires.attach(pod)
        named = {} if network is None else {"GLOO_SOCKET_IFNAME": INTERFACE}
        process = self.forks.fork({**environment, **named}, log, network=network)
        self.started.append(process)
        return process
