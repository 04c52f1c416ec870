"""The first stage's thread: it admits, computes its own layers, sends passes on, and hands out tokens.

Decisions are the scheduler's (`pipelinejob.serving`); this plays them on a chain.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pipelinejob.contract.plan import ServedAt
from pipelinejob.serving.chunks import PassCost, all_costs
from pipelinejob.serving.passes import Pass, Sampled
from pipelinejob.serving.predict import best_spread, examples
from pipelinejob.serving.scheduler import Answer, Limits, Progress, Scheduler
from pipelinejob_trainer.base.errors import PeerLostError
from pipelinejob_trainer.process.output import say, warn
from pipelinejob_trainer.serving.chain import Chain, Gone, Joined, Left, Returned
from pipelinejob_trainer.serving.later_stage import SILENCE_S, Compute
from pipelinejob_trainer.serving.meter import LONGEST_PASS_S, Meter, Reading, check_moves
from pipelinejob_trainer.serving.sampling import sample

_WAKE_S = 1.0


@dataclass(frozen=True, slots=True)
class Failed:
    """An answer ends without an ending; the same request may be sent again, but where it may be the cause itself."""

    sequence: int
    reason: str
    may_be_the_cause: bool = False


def _nobody_listens(_: float) -> None:
    pass


Listener = Callable[[Progress | Failed], None]


@dataclass(frozen=True, slots=True)
class _Submitted:
    answer: Answer
    listener: Listener


@dataclass(frozen=True, slots=True)
class _Cancelled:
    number: int


class Idle(StrEnum):
    """Why the first stage has nothing to compute."""

    NO_REQUESTS = "no requests"
    MISSING_STAGES = "missing stages"
    TOKENS = "tokens on their way"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is in work now."""

    waiting: int
    active: int
    flying: int
    blocks_owned: int
    blocks: int
    block_tokens: int
    group_size: int
    chains: int
    is_whole: bool
    missing: tuple[int, ...]


class Engine:
    """Serves with this process's layers as the first stage, in a thread of its own.

    `patience_s` is how long answers wait for a chain that is broken before they fail; `silence_s`
    after what silence a stage is lost. `weights` says which the stages must have. `processors` are
    those that the stages share, for predictions; None: each has its own. A stage that works on one
    pass for more than `longest_pass_s` is stuck.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        compute: Compute,
        *,
        num_stages: int,
        port: int,
        cost: PassCost,
        patience_s: float = 300.0,
        silence_s: float = SILENCE_S,
        weights: str = "",
        processors: float | None = None,
        longest_pass_s: float = LONGEST_PASS_S,
    ) -> None:
        self._longest_pass_s = longest_pass_s
        self._processors = processors
        self._scheduler = scheduler
        self._compute = compute
        self._is_alone = num_stages == 1
        self._patience_s = patience_s
        self._cost = cost
        self._predictions: tuple[ServedAt, ...] = ()
        self._costs: tuple[PassCost, ...] = ()
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._chain = Chain(num_stages - 1, port=port, events=self._events, silence_s=silence_s, weights=weights)
        self._listeners: dict[int, Listener] = {}
        self._broken_since: float | None = time.monotonic()
        self._can_send = True  # False: nothing could go out since the last event
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self.meter = Meter()
        self.idle_s = dict.fromkeys(Idle, 0.0)
        self.on_begun: Callable[[float], None] = _nobody_listens  # with the seconds that an answer waited for its turn
        self._submitted_s: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def limits(self) -> Limits:
        """What may be in work at once."""
        return self._scheduler.limits

    @property
    def port(self) -> int:
        """The port that later stages dial."""
        return self._chain.port

    @property
    def error(self) -> BaseException | None:
        """What ended the engine's thread against its will."""
        return self._error

    @property
    def is_ready(self) -> bool:
        """Whether all stages are there."""
        return self._chain.is_whole and self._error is None and not self._closing.is_set()

    def check_moves(self) -> None:
        """Raise StuckError where the pass that this stage works on has taken too long."""
        check_moves(self.meter.read(), self._longest_pass_s)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; answers in work fail."""
        self._closing.set()
        self._events.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._chain.close()

    def submit(self, answer: Answer, listener: Listener) -> None:
        """Let an answer be made; the listener is called in the engine's thread, and must not wait."""
        self._events.put(_Submitted(answer, listener))

    def cancel(self, number: int) -> None:
        """Make an answer no further; its listener is called no more."""
        self._events.put(_Cancelled(number))

    def load(self) -> Load:
        """Return what is in work now."""
        scheduler = self._scheduler
        return Load(
            waiting=scheduler.num_waiting,
            active=scheduler.num_active,
            flying=scheduler.num_flying,
            blocks_owned=scheduler.blocks.num_owned,
            blocks=scheduler.blocks.count,
            block_tokens=scheduler.blocks.size,
            group_size=scheduler.limits.group_size,
            chains=self._chain.number,
            is_whole=self.is_ready,
            missing=self._chain.missing,
        )

    def readings(self) -> Mapping[int, Reading]:
        """Return what each stage has counted, the first one included."""
        return {0: self.meter.read(), **self._chain.readings}

    def costs(self) -> tuple[PassCost, ...]:
        """Return what a pass costs each stage, as they measured it; nothing before all are there."""
        return self._costs

    def predictions(self) -> tuple[ServedAt, ...]:
        """Return what was predicted when the chain was formed, at several loads."""
        return self._predictions

    def _predict(self) -> None:
        """Make chunks equal, and batches as large as is best, by what stages measured; foretell what they will give."""
        self._costs = costs = (self._cost, *self._chain.costs)
        self._scheduler.cost = all_costs(costs)
        self._scheduler.spread = best_spread(self._scheduler.limits, costs, processors=self._processors)
        self._predictions = examples(self._scheduler.limits, costs, processors=self._processors)
        for found in self._predictions:
            say(
                f"predicted for {found.requests} at once, of {found.tokens} tokens in and {found.tokens} out: first"
                f" token after {found.first_token_s:.3g} s, then one every {found.per_token_s * 1000:.3g} ms,"
                f" {found.tokens_per_s:.3g} tokens/s in all, stages busy"
                f" {', '.join(f'{each:.0%}' for each in found.utilization)}"
            )

    def _run(self) -> None:
        try:
            if self._is_alone:
                self._predict()
            while not self._closing.is_set():
                self._take_in()
                self._send_out()
                self._lose_patience()
        except BaseException as error:  # noqa: BLE001 # told by `error`, and by each answer
            self._error = error
        self._fail_all("the server stops" if self._error is None else f"the server failed: {self._error}")

    def _take_in(self) -> None:
        """Handle what has happened; wait for something if nothing can go out."""
        is_idle = not self._chain.is_whole or not (self._can_send or self._events.qsize())
        try:
            event = self._waited() if is_idle else self._events.get_nowait()
            while True:
                self._handle(event)
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _waited(self) -> object:
        """Wait for an event, and note for what. Raises queue.Empty."""
        cause = Idle.MISSING_STAGES
        if self._chain.is_whole:
            cause = Idle.TOKENS if self._scheduler.num_flying else Idle.NO_REQUESTS
        begun = time.monotonic()
        try:
            return self._events.get(timeout=_WAKE_S)
        finally:
            self.idle_s[cause] += time.monotonic() - begun

    def _handle(self, event: object) -> None:
        self._can_send = True
        match event:
            case _Submitted():
                self._listeners[event.answer.number] = event.listener
                self._submitted_s[event.answer.number] = time.monotonic()
                self._scheduler.submit(event.answer)
            case _Cancelled():
                self._listeners.pop(event.number, None)
                self._submitted_s.pop(event.number, None)
                self._scheduler.cancel(event.number)
            case Joined() | Left():
                self._handle_change(event)
            case Returned():
                if self._chain.is_current(event):
                    self._hand_out(event.outcome.number, event.outcome.sampled)
            case Gone():
                raise PeerLostError(f"the weights of {event.weights} are not there any more; the newest are taken")
            case None:
                pass

    def _handle_change(self, event: Joined | Left) -> None:
        was_whole = self._chain.is_whole
        if isinstance(event, Joined):
            if self._chain.joined(event):
                say(f"all stages are there: chain {self._chain.number} serves")
                self._broken_since = None
                self._predict()
            if was_whole:
                self._lost(f"stage {event.stage} came again")
        elif self._chain.left(event) and was_whole:
            self._lost(f"stage {event.stage} is lost: {event.reason}")

    def _lost(self, why: str) -> None:
        warn(f"{why}; {self._scheduler.num_active} answers in work go on from their tokens once it is back")
        for number in self._scheduler.lose_all():
            warn(f"answer {number} was lost with its chain again and again without a token between, and is given up")
            self._submitted_s.pop(number, None)
            listener = self._listeners.pop(number)
            listener(Failed(number, "each time its chain was lost before the next token", may_be_the_cause=True))
        if not self._chain.is_whole:
            self._broken_since = time.monotonic()

    def _send_out(self) -> None:
        """Start passes while any may go out; between two, look at what has happened."""
        if not self._chain.is_whole:
            return
        self._broken_since = None
        given = self._scheduler.next_pass()
        if given is None:
            self._can_send = False
            return
        for row in given.rows:
            submitted_s = self._submitted_s.pop(row.sequence, None)
            if submitted_s is not None:
                self.on_begun(time.monotonic() - submitted_s)
        self._play(given)

    def _play(self, given: Pass) -> None:
        with self.meter.of_pass(rows=len(given.rows), tokens=sum(len(row.tokens) for row in given.rows)):
            output = self._compute.run(given.rows, None)
            sampled = sample(given.rows, output) if self._is_alone else ()
        if self._is_alone:
            self._hand_out(given.number, sampled)
            return
        try:
            self._chain.send(given, output)
        except PeerLostError as error:
            self._chain.break_up()
            self._lost(f"stage 1 is lost: {error}")

    def _hand_out(self, number: int, sampled: tuple[Sampled, ...]) -> None:
        self._can_send = True
        for progress in self._scheduler.sampled(number, sampled):
            listener = self._listeners[progress.sequence]
            if progress.ending is not None:
                del self._listeners[progress.sequence]
            listener(progress)

    def _lose_patience(self) -> None:
        broken = self._broken_since
        if broken is not None and self._listeners and time.monotonic() - broken > self._patience_s:
            names = ", ".join(map(str, self._chain.missing))
            self._fail_all(f"stages {names} have not come back for {self._patience_s:g} s")

    def _fail_all(self, reason: str) -> None:
        self._submitted_s.clear()
        for number, listener in list(self._listeners.items()):
            del self._listeners[number]
            self._scheduler.cancel(number)
            listener(Failed(number, reason))
