"""A thousand connections of wrk on a served model: what it answers a second, and whether anything is refused or left.

    apt-get install wrk
    python tests/bench/serving/wrk_serving.py [--connections 1000] [--seconds 30]

The service is the soak's: a tiny model over three stages, processes of their own. Each connection
asks for a completion, and again once it has it. Prints JSON; ends with 1 if an answer was no 200,
if a connection failed, or if anything is in work, in line or in the cache in the end. wrk gives up
on an answer after `--seconds`, which counts as amiss, too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from soak_serving import NEW, PORT, Soak, _serving, _until_ready

_LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local count = 0
function request()
  count = count + 1
  local prompt = "def f" .. count % 40 .. "("
  return wrk.format(nil, "/v1/completions", nil,
    string.format('{"model": "soak", "prompt": "%%s", "max_tokens": %d, "temperature": 0}', prompt))
end
function done(summary)
  local e = summary.errors
  io.write(string.format("told %%d %%d %%d %%d %%d %%d %%d\\n",
    summary.requests, summary.duration, e.connect, e.read, e.write, e.status, e.timeout))
end
"""
_WORDS = ("answers", "microseconds", "connect", "read", "write", "status", "timeout")


def main() -> int:
    """Serve, let wrk ask, and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        expected, run = _serving(Path(folder), waiting=given.connections)
        try:
            _until_ready(run)
            told = _asked(Path(folder), given)
            soak = Soak(argparse.Namespace(requests=0), expected, run)
            left = asyncio.run(soak._leaked())
        finally:
            run.interrupt()
            run.wait(60)
    errors = {word: told[word] for word in _WORDS[2:]}
    found = {
        "connections": given.connections,
        "answers": told["answers"],
        "answers_per_second": round(told["answers"] / (told["microseconds"] / 1e6), 1),
        "errors": errors,
        "left_in_work_line_cache": left,
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(found, indent=1))
    return 1 if any(errors.values()) or any(left) or not told["answers"] else 0


def _asked(folder: Path, given: argparse.Namespace) -> Counter[str]:
    """Return what wrk counted."""
    script = folder / "completions.lua"
    script.write_text(_LUA % NEW)
    flags = [f"-c{given.connections}", "-t2", f"-d{given.seconds}s", f"--timeout={given.seconds}s", f"-s{script}"]
    said = subprocess.run(
        ["wrk", *flags, f"http://127.0.0.1:{PORT}"], capture_output=True, text=True, check=True
    ).stdout
    numbers = re.search(r"^told (.*)$", said, re.MULTILINE)
    assert numbers is not None, said
    return Counter(dict(zip(_WORDS, map(int, numbers[1].split()), strict=True)))


if __name__ == "__main__":
    sys.exit(main())
