"""Stands in for a stage that recovers in place: it waits to be told who meets, and goes over at a border; no torch.

A border comes 50 ms after it was told of one, or called. `MEETING_DIES=1` makes those of further
replicas end at once.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

REPLICA, STAGE = int(os.environ["PIPELINEJOB_REPLICA"]), int(os.environ["PIPELINEJOB_STAGE"])
PLAN = json.loads(Path(os.environ["PIPELINEJOB_PLAN"]).read_text())
account = {
    "replica": REPLICA, "stage": STAGE, "attempt": int(os.environ["PIPELINEJOB_ATTEMPT"]), "phase": "Starting",
    "step": 0, "awaitsIncarnation": True, "controlPort": 1, "incarnation": 0,
}  # fmt: skip


def end(code: int, reason: str) -> None:
    words = {"exitCode": code, "reason": reason, "message": reason, "step": account["step"]}
    Path(os.environ["PIPELINEJOB_TERMINATION_LOG"]).write_text(json.dumps(words))
    sys.stdout.flush()
    os._exit(code)


def go_over(told: dict[str, object]) -> None:
    members = told["members"]
    assert isinstance(members, list)
    if not any((each["replica"], each["stage"]) == (REPLICA, STAGE) for each in members):
        end(0, "NotNeeded")
    moves = {"stallS": 0.05} if told.get("atBorder") else {}
    account.pop("movesTo", None)
    account.update(phase="Training", awaitsIncarnation=False, incarnation=told["number"], **moves)
    print(f"incarnation {told['number']} of {len(members)}", flush=True)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_refused = self.path == "/readyz" and account["phase"] == "Starting"
        self.send_response(503 if is_refused else 200)
        self.end_headers()
        self.wfile.write(json.dumps(account).encode())

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if told.get("atBorder"):
            account["movesTo"] = told["number"]
            threading.Timer(0.05, go_over, [told]).start()
        else:
            go_over(told)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


if REPLICA and "MEETING_DIES" in os.environ:
    end(1, "DiedYoung")
server = HTTPServer(("127.0.0.1", int(os.environ["PIPELINEJOB_METRICS_PORT"])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
while True:
    time.sleep(0.02)
    if account["phase"] == "Training":
        account["step"] = int(account["step"]) + 1
