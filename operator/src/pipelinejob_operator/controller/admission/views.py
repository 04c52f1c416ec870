"""What decisions look at, made from the room once and kept for as long as nothing of it changed."""

from collections.abc import Callable
from datetime import datetime

from pipelinejob_operator.admission.choosing import Chooser
from pipelinejob_operator.admission.pods.admitted import AdmittedPods
from pipelinejob_operator.admission.room import Room
from pipelinejob_operator.controller.planning import Ground


class Views:
    """The room as plans see it (`ground`), and as the choice of nodes does (`chooser`)."""

    def __init__(self, room: Room, *, admitted: AdmittedPods, clock: Callable[[], datetime]) -> None:
        self._room = room
        self._admitted = admitted
        self._clock = clock
        self._ground: tuple[object, Ground] | None = None
        self._chooser: tuple[object, Chooser] | None = None
        self._looked_at: object = None
        self.usable_at: object = None  # the nodes, the rules of pods and the classes that were last looked at

    def ground(self) -> Ground:
        """What the cluster consists of now, whatever runs on it."""
        room = self._room
        room.refresh()
        now = (room.node_version, room.empty_version)
        if self._ground is None or self._ground[0] != now:
            self._ground = (now, Ground(nodes=room.nodes, room=dict(room.empty), profiles=room.profiles))
        return self._ground[1]

    def chooser(self) -> Chooser:
        """A chooser for the nodes as they are."""
        room = self._room
        nodes = room.node_version
        if self._chooser is None or self._chooser[0] != nodes:
            self._chooser = (nodes, Chooser(room.nodes, self._admitted, room.profiles))
            self._looked_at = None
        chooser = self._chooser[1]
        now = (room.pod_version, self._clock().timestamp() // 1)
        if self._looked_at != now:
            chooser.look(room.neighbours(), self._clock())
            self._looked_at = now
        empty = (nodes, room.empty_version, room.shy_version, room.order)
        if self.usable_at != empty:
            chooser.forget_usable()
            self.usable_at = empty
        return chooser
