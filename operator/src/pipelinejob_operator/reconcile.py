"""One pass over one job: observe, decide, apply. Every event, the resync timer and the start of the program call it alike."""

from collections.abc import Callable
from datetime import datetime

from pipelinejob_operator.cluster import Cluster, Key
from pipelinejob_operator.controller_settings import ControllerSettings

__all__ = ["Controller", "ControllerSettings"]


class Controller:
    """Brings one job at a time closer to what its spec says; may run for several jobs concurrently, never twice for one."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        settings: ControllerSettings,
        clock: Callable[[], datetime],
        profile_source: Callable[[object], object] | None = None,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._profile_source = profile_source

    async def reconcile(self, key: Key) -> float | None:
        """Bring the job closer to its spec.

        Gives the seconds after which it wants to be called again, None if only an event can change anything. Raises
        ClusterError when a write failed; the caller retries with back-off.
        """
        raise NotImplementedError(key)
