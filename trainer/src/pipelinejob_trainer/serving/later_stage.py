"""A stage behind the first: it joins the chain, works through passes in the order they come, and joins again.

It dials the first stage and says where it listens. Once all stages have, the first one tells each
whom to send to; that forms a chain, which has a number. When anything of the chain breaks the
first stage closes its connection, and so the stage leaves and dials anew, with its weights still
there.
"""

import contextlib
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from pipelinejob.base.errors import PipelineJobError
from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.passes import Outcome, Row
from pipelinejob_trainer.base.errors import PeerLostError, StoppedError
from pipelinejob_trainer.process.config import Address
from pipelinejob_trainer.process.output import warn
from pipelinejob_trainer.serving.meter import LONGEST_PASS_S, Meter
from pipelinejob_trainer.serving.sampling import sample
from pipelinejob_trainer.serving.wire import Frame, Kind, pass_of, receive, send

BEAT_S = 0.5
SILENCE_S = 3.0  # a stage that says nothing for so long is lost
_DIAL_AGAIN_S = 0.3
_GONE_MS = 10_000
_FORM_S = 30.0  # for neighbours to find each other, once all are there


class OtherWeightsError(PipelineJobError):
    """The first stage has weights of another step; they must be read anew."""


class Compute(Protocol):
    """What a stage does with a pass."""

    def run(self, rows: tuple[Row, ...], received: torch.Tensor | None) -> torch.Tensor:
        """Return what the next stage needs, (rows, tokens, hidden); or, on the last one, logits (rows, vocabulary)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaterStage:
    """A stage's place, and what it computes with; `weights` says which, where there are several.

    Where it works on one pass for more than `longest_pass_s`, it is stuck.
    """

    stage: int
    front: Address
    compute: Compute
    meter: Meter
    cost: PassCost
    weights: str = ""
    longest_pass_s: float = LONGEST_PASS_S

    def serve(self, stop: threading.Event) -> None:
        """Serve in chain after chain, until `stop`.

        Raises OtherWeightsError where the first stage has others by now.
        """
        with socket.create_server(("", 0)) as listener:
            said = ""
            while not stop.is_set():
                try:
                    self._one_chain(listener, stop)
                except PeerLostError as error:
                    if str(error) != said and not stop.is_set():
                        warn(f"stage {self.stage} is in no chain and joins again: {error}")
                    said = str(error)
                stop.wait(_DIAL_AGAIN_S)

    def _one_chain(self, listener: socket.socket, stop: threading.Event) -> None:
        with contextlib.ExitStack() as stack:
            control = _Control(stack.enter_context(_dialled((self.front.host, self.front.port))), self.meter)
            control.send(Frame(Kind.HELLO, self._hello(listener)))
            stack.enter_context(control.beating())
            chain = self._told(control, stop)
            following = None
            if chain["next"] is not None:
                following = stack.enter_context(_dialled(tuple(chain["next"])))
                send(following, Frame(Kind.HELLO, {"chain": chain["chain"]}))
            before = stack.enter_context(_accepted(listener, chain["chain"]))
            stack.enter_context(control.closes(before, following))
            self._work(before, following, control)

    def _hello(self, listener: socket.socket) -> dict[str, object]:
        return {
            "stage": self.stage,
            "port": listener.getsockname()[1],
            "cost": self.cost.dump(),
            "weights": self.weights,
            "longest_s": self.longest_pass_s,
        }

    def _told(self, control: "_Control", stop: threading.Event) -> Any:
        """Wait until the first stage says that all are there."""
        while not stop.is_set():
            frame = control.receive_within(1.0)
            if frame is not None:
                if "weights" in frame.header:
                    raise OtherWeightsError(
                        f"this stage has weights of {self.weights}, the first one of {frame.header['weights']}"
                    )
                return frame.header
        raise PeerLostError("asked to stop")

    def _work(self, before: socket.socket, following: socket.socket | None, control: "_Control") -> None:
        for frame in _read_ahead(before):
            given = pass_of(frame.header)
            with self.meter.of_pass(rows=len(given.rows), tokens=sum(len(row.tokens) for row in given.rows)):
                output = self.compute.run(given.rows, frame.tensor)
                sampled = sample(given.rows, output) if following is None else ()
            if following is None:
                control.send(Frame(Kind.OUTCOME, Outcome(number=given.number, sampled=sampled)))
            else:
                send(following, Frame(Kind.PASS, given, output))


def asked_step(front: Address, is_stopping: Callable[[], bool]) -> int:
    """Ask the first stage which step's weights it has; wait until it knows.

    Raises StoppedError if this stage is asked to stop meanwhile.
    """
    while not is_stopping():
        with contextlib.suppress(PeerLostError, KeyError, ValueError), _dialled((front.host, front.port)) as connection:
            connection.settimeout(SILENCE_S)
            send(connection, Frame(Kind.HELLO, {"asks": "weights"}))
            return int(receive(connection).header["weights"].removeprefix("step "))
        time.sleep(_DIAL_AGAIN_S)
    raise StoppedError("asked to stop")


def tell_gone(front: Address, step: int) -> None:
    """Tell the first stage that a step's weights are not there any more."""
    with contextlib.suppress(PeerLostError), _dialled((front.host, front.port)) as connection:
        send(connection, Frame(Kind.HELLO, {"asks": "weights", "gone": f"step {step}"}))


class _Control:
    """The connection to the first stage: beats and outcomes there, the word to begin back."""

    def __init__(self, connection: socket.socket, meter: Meter) -> None:
        self._connection = connection
        self._meter = meter
        self._lock = threading.Lock()

    def send(self, frame: Frame) -> None:
        with self._lock:
            send(self._connection, frame)

    def receive_within(self, timeout_s: float) -> Frame | None:
        """Return the next frame; None if none begins in that time."""
        try:
            readable, _, _ = select.select([self._connection], [], [], timeout_s)
        except (OSError, ValueError) as error:  # closed already
            raise PeerLostError(f"the first stage went away: {error}") from error
        if not readable:
            return None
        return receive(self._connection)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Send a beat now and then, from another thread."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT_S):
                try:
                    self.send(Frame(Kind.BEAT, asdict(self._meter.read())))
                except PeerLostError:
                    return

        thread = threading.Thread(target=beat, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def closes(self, *others: socket.socket | None) -> Iterator[None]:
        """Close other connections when the first stage closes this one, so that no one waits on them."""

        def watch() -> None:
            try:
                while self.receive_within(60.0) is None:
                    pass
            except PeerLostError:
                pass
            for each in others:
                _shut(each)

        watcher = threading.Thread(target=watch, name="control", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            _shut(self._connection)
            watcher.join()


def _read_ahead(connection: socket.socket) -> Iterator[Frame]:
    """Return frames, of which the next is read while one is worked on."""
    frames: queue.Queue[Frame | PeerLostError] = queue.Queue()

    def read() -> None:
        try:
            while True:
                frames.put(receive(connection))
        except PeerLostError as error:
            frames.put(error)

    threading.Thread(target=read, name="reader", daemon=True).start()
    while True:
        frame = frames.get()
        if isinstance(frame, PeerLostError):
            raise frame
        yield frame


@contextmanager
def _dialled(address: tuple[str, int]) -> Iterator[socket.socket]:
    try:
        connection = socket.create_connection(address, timeout=SILENCE_S)
    except OSError as error:
        raise PeerLostError(f"nobody answers at {address[0]}:{address[1]} ({error})") from error
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # a machine that is gone says no goodbye
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS)
        connection.settimeout(None)
        try:
            yield connection
        finally:
            _shut(connection)


@contextmanager
def _accepted(listener: socket.socket, chain: object) -> Iterator[socket.socket]:
    """Return the connection of the stage before, in this chain; those of chains that were left are closed."""
    deadline = time.monotonic() + _FORM_S
    while True:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError as error:
            raise PeerLostError(f"the stage before did not come within {_FORM_S:g} s") from error
        connection.settimeout(SILENCE_S)
        try:
            if receive(connection).header["chain"] == chain:
                break
        except (PeerLostError, KeyError, TypeError):
            pass
        connection.close()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        try:
            yield connection
        finally:
            _shut(connection)


def _shut(connection: socket.socket | None) -> None:
    """Wake whoever waits on a connection."""
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
