"""Pods for the local cluster, and a trainer of twenty lines that stands in where the real one is not the point."""

import sys
from pathlib import Path
from typing import Any

from pipelinejob.base import names

# Serves /progress and /readyz on its metrics port, writes its environment's last words, stops on
# SIGTERM with 143.
FAKE_TRAINER = """
import json, os, signal, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
stage = int(os.environ["PIPELINEJOB_STAGE"])
def end(code, reason):
    with open(os.environ["PIPELINEJOB_TERMINATION_LOG"], "w") as log:
        json.dump({"exitCode": code, "reason": reason, "message": "as told", "step": 3}, log)
    os._exit(code)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"replica": 0, "stage": stage, "attempt": 1, "phase": "Training", "step": 3, "loss": 2.5}).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
    def log_message(self, *_): pass
server = HTTPServer(("127.0.0.1", int(os.environ["PIPELINEJOB_METRICS_PORT"])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
signal.signal(signal.SIGTERM, lambda *_: end(143, "Stopped"))
print("stage", stage, "plan", open(os.environ["PIPELINEJOB_PLAN"]).read(), flush=True)
while True: signal.pause()
"""  # noqa: E501

PLAN = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"namespace": "default", "name": "job-plan"},
    "data": {"plan.json": "{}"},
}


def python(code: str) -> list[str]:
    """Return the command that runs `code`."""
    return [sys.executable, "-c", code]


def job(**spec: Any) -> dict[str, Any]:
    """Return a PipelineJob named `job`."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"namespace": "default", "name": "job"},
        "spec": spec,
    }


def pod(uid: str, *, stage: int = 0, command: list[str], gated: bool = False, grace_s: int = 5) -> dict[str, Any]:
    """Return a stage's pod, as the operator would make it, owned by the job of that uid."""
    environment = {
        names.ENV_PLAN: f"{names.PLAN_MOUNT}/{names.PLAN_FILE}",
        names.ENV_STAGE: str(stage),
        names.ENV_METRICS_PORT: str(names.PORT_METRICS),
        names.ENV_RENDEZVOUS: "job-r0-s0.job.default.svc:29500",
        names.ENV_CHECKPOINTS: f"{names.CHECKPOINT_MOUNT}/default/job",
    }
    container = {
        "name": names.CONTAINER_TRAINER,
        "image": "trainer",
        "command": command,
        "env": [
            *({"name": name, "value": value} for name, value in environment.items()),
            {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "TRY", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{names.LABEL_ATTEMPT}']"}}},
        ],
        "ports": [{"name": names.PORT_METRICS_NAME, "containerPort": names.PORT_METRICS}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": names.PORT_METRICS_NAME}},
        "volumeMounts": [{"name": "plan", "mountPath": names.PLAN_MOUNT}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "default",
            "name": names.pod_name("job", replica=0, stage=stage),
            "labels": {names.LABEL_JOB: "job", names.LABEL_STAGE: str(stage), names.LABEL_ATTEMPT: "1"},
            "ownerReferences": [{"kind": names.KIND, "name": "job", "uid": uid, "controller": True}],
        },
        "spec": {
            "terminationGracePeriodSeconds": grace_s,
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [{"name": "plan", "configMap": {"name": "job-plan"}}],
            **({"schedulingGates": [{"name": names.GATE_GANG}]} if gated else {}),
        },
    }


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
