"""A program that has imported all that a rank needs, and forks a rank for each line of JSON on its stdin.

Each is a grandchild, so that it becomes the child of the process that started this one, and asked
the kernel for orphans.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any, NoReturn

_DIE_WITH_PARENT, _NEW_NETWORK = 1, 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    import torch

    from pipelinejob_trainer.training import recovering  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        place = json.loads(line)
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            os.setsid()
            rank = os.fork()
            if rank == 0:
                os.close(reader)
                os.close(writer)
                _become(place)
            os.write(writer, str(rank).encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(between, 0)
        sys.stdout.write(os.read(reader, 32).decode() + "\n")
        sys.stdout.flush()
        os.close(reader)


def _become(place: dict[str, Any]) -> NoReturn:
    while os.getppid() != place["parent"]:
        os.sched_yield()
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    log = os.open(place["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for to, of in enumerate((nothing, log, log)):
        os.dup2(of, to)
    os.close(log)
    os.close(nothing)
    if place["network"] is not None:
        network = os.open(place["network"], os.O_RDONLY)
        if _LIBC.setns(network, _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"cannot enter {place['network']}")
        os.close(network)
    os.chdir(place["folder"])
    os.environ.clear()
    os.environ.update(place["environment"])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path and path not in sys.path]
    import torch

    from pipelinejob_trainer.main import main as trainer

    # The first call makes torch's pool of threads anew, which a fork leaves without its threads. Two
    # threads that are first together, as autograd's are, find none ("Invalid thread pool!").
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    trainer(["run"])
    raise AssertionError("a rank's process ends in its command")


if __name__ == "__main__":
    main()
