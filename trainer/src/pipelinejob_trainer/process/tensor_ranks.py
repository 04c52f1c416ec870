"""A stage whose layers several processes share: this one starts them, and they live and end together.

One container, one supervisor, a process for each tensor rank. The supervisor passes a request to
stop on, shows what all of them say on the stage's own port, and ends as the first of them that
ends badly: what the others end with after that only says that it is gone.
"""

import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from pydantic import ValidationError

from pipelinejob.base import names
from pipelinejob.contract.progress import ExitCode, Termination
from pipelinejob_trainer.base.ports import free_port
from pipelinejob_trainer.process.config import Config, read_threads
from pipelinejob_trainer.process.http_server import serve
from pipelinejob_trainer.process.signals import StopRequest
from pipelinejob_trainer.process.termination import ProcessExit

_COMMAND = (sys.executable, "-m", "pipelinejob_trainer", "run")
_FAREWELL_S = 10.0  # for the others to notice that one is gone, and to say so
_ANSWER_S = 2.0  # for a rank's HTTP server; a probe of the kubelet's waits for all of them
_SIGNAL_BASE = 128  # what a signal ended is reported as 128 + its number, as container runtimes do
_GOOD = frozenset({ExitCode.OK, ExitCode.STOPPED})  # which all ranks agree on
_FAMILY = re.compile(rb"# (?:HELP|TYPE) (\S+)")


class Ended(NamedTuple):
    """How a rank's process ended."""

    rank: int
    words: Termination


class TensorRanks:
    """The processes that share a stage's layers; `serve` shows them as one stage."""

    def __init__(self, size: int, variables: Mapping[str, str], folder: Path) -> None:
        """Start them, in the environment of the one that they share a container with.

        `folder` is for their last words.
        """
        self._ports = [free_port() for _ in range(size)]
        self._words = [folder / f"{rank}.json" for rank in range(size)]
        self._ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self._processes = [
            subprocess.Popen(  # this very program
                _COMMAND,
                env={
                    **{name: value for name, value in variables.items() if name != names.ENV_RANK},
                    **_threads(variables, size),
                    names.ENV_TENSOR: str(rank),
                    names.ENV_METRICS_PORT: str(self._ports[rank]),
                    names.ENV_TERMINATION_LOG: str(self._words[rank]),
                },
                stdin=subprocess.PIPE,  # which closes when this process ends
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for rank in range(size)
        ]
        for rank in range(size):
            threading.Thread(target=self._attend, args=(rank,), name=f"tensor-rank-{rank}", daemon=True).start()

    def wait(self) -> Ended:
        """Wait until all have ended; return how the first of them did that counts. No process is left behind."""
        ended = [self._ended.get()]
        if ended[0].words.exit_code in _GOOD:
            ended += (self._ended.get() for _ in self._processes[1:])
        else:
            ended += self._farewells()
            heard = {each.rank for each in ended}
            ended += (_silent(rank) for rank in range(len(self._processes)) if rank not in heard)
        self.kill()
        return cause(ended)

    def terminate(self) -> None:
        """Ask all to stop: they agree on the step."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()

    def kill(self) -> None:
        """End those that are left."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()

    def _farewells(self) -> Iterable[Ended]:
        until = time.monotonic() + _FAREWELL_S
        for _ in self._processes[1:]:
            try:
                yield self._ended.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return

    def _attend(self, rank: int) -> None:
        process = self._processes[rank]
        assert process.stdout is not None
        _pass_on(rank, process.stdout)
        code = process.wait()
        self._ended.put(Ended(rank, _last_words(rank, self._words[rank], code)))

    # What the server shows.

    def metrics(self) -> bytes:
        return merged([answer for port in self._ports if (answer := _get(port, "/metrics")) is not None])

    def progress(self) -> bytes:
        return _get(self._ports[0], "/progress") or b"{}"

    def unhealthy_reason(self) -> str | None:
        for rank, port in enumerate(self._ports):
            reason = _complaint(port)
            if reason is not None:
                return f"tensor rank {rank}: {reason}"
        return None

    def is_ready(self) -> bool:
        return all(_get(port, "/readyz") is not None for port in self._ports)


def supervise(config: Config, size: int, variables: Mapping[str, str], process_exit: ProcessExit) -> NoReturn:
    """Run a stage's ranks; the process ends with what became of them."""
    with tempfile.TemporaryDirectory(prefix="pipelinejob-") as folder:
        ranks = TensorRanks(size, variables, Path(folder))
        StopRequest(grace_s=config.grace_s, on_overdue=ranks.terminate).listen()
        try:
            serve(ranks, config.metrics_port)
            ended = ranks.wait()
        finally:
            ranks.kill()
    process_exit.end_as(ended.words)


def cause(ended: Sequence[Ended]) -> Ended:
    """Return the ending that explains the others: the first that is neither good nor only says that a peer is gone."""
    bad = [each for each in ended if each.words.exit_code != ExitCode.OK]
    own = [each for each in bad if each.words.exit_code != ExitCode.PEER_LOST]
    return (*own, *bad, *sorted(ended))[0]


def merged(expositions: Sequence[bytes]) -> bytes:
    """Return metrics in Prometheus' text format as one: what several say of a family stands together."""
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for exposition in expositions:
        samples: list[bytes] = []
        for line in exposition.splitlines():
            found = _FAMILY.match(line)
            if found is not None:
                head, samples = families.setdefault(found[1], ([], []))
                if line not in head:
                    head.append(line)
            elif line:
                samples.append(line)
    return b"".join(line + b"\n" for head, samples in families.values() for line in (*head, *samples))


def _silent(rank: int) -> Ended:
    """Return how a rank ended that had to be, as it hung while others gave up: it is what they say has gone."""
    message = f"tensor rank {rank} was silent: it neither went on nor ended within {_FAREWELL_S:g} s of the others"
    return Ended(rank, Termination(exit_code=ExitCode.FAILURE, reason="TensorRankSilent", message=message, step=0))


def _threads(variables: Mapping[str, str], size: int) -> dict[str, str]:
    """Return a rank's share of the processors, where the stage was given some."""
    threads = read_threads(variables)
    return {} if threads is None else {"OMP_NUM_THREADS": str(max(1, threads // size))}


def _last_words(rank: int, file: Path, code: int) -> Termination:
    try:
        words = Termination.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
        code = code if code >= 0 else _SIGNAL_BASE - code
        return Termination(exit_code=code, reason="TensorRankEnded", message=f"tensor rank {rank} {how}", step=0)
    if words.exit_code in _GOOD:
        return words
    return words.model_copy(update={"message": f"tensor rank {rank}: {words.message}"})


def _pass_on(rank: int, lines: IO[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.write(f"[tensor {rank}] ".encode() + line)
        sys.stdout.buffer.flush()


def _get(port: int, path: str) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=_ANSWER_S) as answer:  # ours
            found: bytes = answer.read()
            return found
    except urllib.error.HTTPError as error:
        error.close()  # holds its connection until then
        return None
    except OSError:  # not up yet, or gone
        return None


def _complaint(port: int) -> str | None:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=_ANSWER_S).close()  # as above
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode(errors="replace").strip()
    except OSError:  # one that is not up yet is no worse than a stage alone would be
        return None
    return None
