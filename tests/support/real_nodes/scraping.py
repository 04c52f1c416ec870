"""A Prometheus of Debian over the running pods of a cluster: what it scrapes, and how it is asked."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
from pathlib import Path
from typing import Any

import nodes
from support.local.answers import fetch


def query(url: str, expression: str) -> float:
    answer = json.loads(get(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
    result = answer["data"]["result"]
    assert result, f"no data for {expression}"
    return float(result[0]["value"][1])


def get(url: str) -> str:
    """Return what a URL answers; raises as `fetch`, as for a Prometheus that just started."""
    return fetch(url, timeout_s=30)


def configuration(targets: Path) -> dict[str, Any]:
    """Scrape what `targets` lists. Debian's Prometheus is built without discovery by the Kubernetes API."""
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [{"job_name": "pods", "honor_labels": True, "file_sd_configs": [{"files": [str(targets)]}]}],
    }


def discover(cluster: nodes.Cluster, targets: Path, stopped: threading.Event) -> None:
    """Keep `targets` to the running pods' ports named `metrics`: what the chart's PodMonitor asks for."""
    while not stopped.wait(2):
        with contextlib.suppress(RuntimeError):
            found = [_target(pod, port) for pod in cluster.server.get("pods", "-A")["items"] for port in _metrics(pod)]
            beside = targets.with_suffix(".new")
            beside.write_text(json.dumps(found))
            beside.replace(targets)


def _metrics(pod: dict[str, Any]) -> list[int]:
    if not pod["status"].get("podIP") or pod["status"]["phase"] != "Running":
        return []
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", ())]
    return [port["containerPort"] for port in ports if port.get("name") == "metrics"]


def _target(pod: dict[str, Any], port: int) -> dict[str, Any]:
    return {"targets": [f"{pod['status']['podIP']}:{port}"], "labels": {"pod": pod["metadata"]["name"]}}
