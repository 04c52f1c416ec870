"""Becomes a stage's process, after tying its life to its parent's: run as a script, it knows nothing but its arguments.

`python launch.py PARENT_PID COMMAND...` asks the kernel to kill the process when the parent dies,
however it dies, and then replaces itself by the command. The request outlives exec. Done here and
not between fork and exec of the parent, where Python code may deadlock in a program that has
threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NOT_FOUND = 127  # as a shell says it


def main() -> None:
    """Tie this process to its parent and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel knew of our wish
        sys.exit(128 + signal.SIGKILL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]!r}: {error.strerror}; check the container's command\n")
        sys.exit(_NOT_FOUND)


if __name__ == "__main__":
    main()
