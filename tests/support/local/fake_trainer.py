"""Stands in for a stage where training is not the point: same files, same exit codes, a made-up loss, no torch.

It "trains" a step every 20 ms; its checkpoint is the step it has reached. On SIGTERM it writes
that and ends with 143, unless FAKE_DEAF is set. `FAKE_EXIT=<stage>:<code>` makes that stage end
so, in its first attempt, after three steps.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

STAGE = int(os.environ["PIPELINEJOB_STAGE"])
ATTEMPT = int(os.environ["PIPELINEJOB_ATTEMPT"])
OUTPUT = Path(os.environ["PIPELINEJOB_OUTPUT"])
PLAN = json.loads(Path(os.environ["PIPELINEJOB_PLAN"]).read_text())
CHECKPOINT = Path(os.environ["PIPELINEJOB_CHECKPOINTS"]) / f"stage-{STAGE}"
STEPS = PLAN["training"]["steps"]
step = int(CHECKPOINT.read_text()) if CHECKPOINT.exists() else 0


def loss() -> float:
    return 5.5 / (1 + step / 10)


def progress() -> dict[str, object]:
    return {
        "replica": 0, "stage": STAGE, "attempt": ATTEMPT, "phase": "Training", "step": step, "loss": loss(),
        "tokensPerS": 1000.0, "stepS": 0.02, "bubbleRatio": 0.25, "utilizationRatio": 0.7, "memoryBytes": 2**20,
        "checkpointStep": step,
    }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(progress()).encode())

    def log_message(self, *_: object) -> None:
        pass


def end(code: int, reason: str, message: str = "") -> None:
    CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)
    CHECKPOINT.write_text(str(step))
    words = {"exitCode": code, "reason": reason, "message": message, "step": step}
    Path(os.environ["PIPELINEJOB_TERMINATION_LOG"]).write_text(json.dumps(words))
    sys.stdout.flush()
    os._exit(code)


def write_step() -> None:
    record = {
        "step": step, "loss": loss(), "gradientNorm": 1.0, "learningRate": 1e-3, "stepS": 0.02, "tokensPerS": 1000.0,
        "time": time.time(), "attempt": ATTEMPT,
    }  # fmt: skip
    with (OUTPUT / "steps.jsonl").open("a") as steps:
        steps.write(json.dumps(record) + "\n")


def write_timeline() -> None:
    (OUTPUT / "timelines").mkdir(exist_ok=True)
    spans = [
        {"kind": "recv", "startS": 0, "endS": 0.005, "cause": "warm-up"},
        {"kind": "forward", "startS": 0.005, "endS": 0.01, "microBatch": 0},
        {"kind": "backward_input", "startS": 0.01, "endS": 0.02, "microBatch": 0},
    ]
    stage = {"replica": 0, "stage": STAGE, "step": step, "spans": spans}
    file = OUTPUT / "timelines" / f"fake-{STAGE}.json"
    file.write_text(json.dumps({"source": "measured", "stages": [stage]}))


server = HTTPServer(("127.0.0.1", int(os.environ["PIPELINEJOB_METRICS_PORT"])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
signal.signal(signal.SIGTERM, signal.SIG_IGN if "FAKE_DEAF" in os.environ else lambda *_: end(143, "Stopped"))
print(f"pid {os.getpid()} from step {step}", flush=True)
wanted_stage, _, code = os.environ.get("FAKE_EXIT", ":").partition(":")
while step < STEPS:
    time.sleep(0.02)
    step += 1
    print(f"at step {step}", flush=True)
    if len(PLAN["stages"]) - 1 == STAGE:
        write_step()
    if wanted_stage == str(STAGE) and ATTEMPT == 1 and step == 3:
        end(int(code), "AsTold", "told to end so")
write_timeline()
end(0, "Completed")
