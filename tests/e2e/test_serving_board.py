"""The dashboard of jobs that serve, drawn by Grafana's panels from what a real Prometheus saw of real stages."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelinejob.base import names
from pipelinejob.contract.trained import Trained
from pipelinejob.spec.job import Data, Model, Training
from support.local.answers import fetch
from support.local.local_cli import Run
from support.local.processes import Process, free_ports, wait_until
from support.real_nodes import dashboards_as_code as dashboards
from support.real_nodes import grafana_drawing as grafana
from support.real_nodes.scraping import configuration, get, query
from support.serving.serving_clients import ask
from support.training.saved_models import moved, saved, whole

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(1800)]
PICTURES = Path(__file__).parents[2] / "build" / "dashboards"
GPT = {"gpt": {"numLayers": 4, "hiddenSize": 64, "numHeads": 4}}
JOB = 'pipelinejob="drawn"'
SEEN_S = 40  # of load, a lost stage and rest


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, int]]:
    """A tiny model over three stages, and the port of its front."""
    folder = tmp_path_factory.mktemp("service")
    data, training = Data(paths=("unused",), sequence_length=64), Training(steps=1, seed=3)
    saved(folder / "saved", moved(whole(Trained(model=Model.model_validate(GPT), data=data, training=training))), 3)
    (port,) = free_ports(1)
    serving = {"fromCheckpoint": True, "port": port, "cacheTokens": 2048, "groupSize": 8, "chunkTokens": 16}
    spec = {"mode": "Serve", "model": GPT, "parallelism": {"pipeline": 3}, "device": "cpu", "serving": serving}
    manifest = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "drawn"}, "spec": spec}
    (folder / "drawn.yaml").write_text(yaml.safe_dump(manifest))
    run = Run(folder / "drawn.yaml", folder / "run", "--checkpoints", str(folder / "saved"), command="serve")
    try:
        run.until(lambda: is_ready(port))
        yield run, port
        run.interrupt()
        run.wait()
    finally:
        run.end()


@pytest.fixture(scope="module")
def prometheus(service: tuple[Run, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prometheus that has scraped the front under load, without a stage, and at rest; gives its address."""
    run, front = service
    folder = tmp_path_factory.mktemp("prometheus")
    targets = folder / "targets.json"
    targets.write_text(json.dumps([{"targets": [f"127.0.0.1:{front}"], "labels": {"pod": "drawn-r0-s0"}}]))
    (folder / "prometheus.yml").write_text(json.dumps(configuration(targets)))
    (port,) = free_ports(1)
    flags = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = Process("prometheus", ["/usr/bin/prometheus", *flags], log=folder / "log")
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: get(f"{url}/-/ready"), "Prometheus is ready")
        wait_until(lambda: query(url, f"pipelinejob_serving_ready{{{JOB}}}") == 1, "it sees the service")
        asyncio.run(asked(front, url, seen=SEEN_S / 2))
        os.kill(run.stages()["1"], signal.SIGKILL)
        wait_until(lambda: query(url, f"pipelinejob_serving_ready{{{JOB}}}") == 0, "it sees that a stage is missing")
        run.until(lambda: is_ready(front))
        asyncio.run(asked(front, url, seen=SEEN_S))
        yield url
    finally:
        process.stop()


async def asked(front: int, prometheus: str, *, seen: float) -> None:
    """Ask all the time, from many clients, until Prometheus has seen so many seconds."""
    done = asyncio.Event()

    async def client(number: int) -> None:
        while not done.is_set():
            body = {"model": "drawn", "prompt": f"def f{number}(", "max_tokens": 24, "temperature": 0}
            await ask(f"http://127.0.0.1:{front}", body)

    clients = [asyncio.create_task(client(number)) for number in range(16)]
    count = f"count_over_time(pipelinejob_serving_ready{{{JOB}}}[10m])"
    while await asyncio.to_thread(query, prometheus, count) < seen:
        await asyncio.sleep(0.5)
    done.set()
    await asyncio.gather(*clients)


def is_ready(port: int) -> bool:
    try:
        return fetch(f"http://127.0.0.1:{port}/readyz", timeout_s=30).startswith("ok")
    except (RuntimeError, OSError):
        return False


def test_grafanas_panels_draw_what_was_measured_beside_what_was_predicted(prometheus: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    now = time.time()
    window = grafana.Window(url=prometheus, start=now - 180, end=now, rate_interval="10s")
    chosen = {"namespace": ("default",), "pipelinejob": ("drawn",)}

    drawn = grafana.draw(dashboards.boards()["serving.json"], window, chosen, picture=PICTURES / "serving.png")

    lines: dict[str, list[Any]] = {panel.title: [line.name for line in panel.lines] for panel in drawn}
    assert [title for title, found in lines.items() if not found] == []
    loads = [f"drawn: {requests} at once (predicted)" for requests in (1, 16, 4)]  # as texts are ordered
    for title in ("Time to first token", "Time per token"):
        assert lines[title] == ["drawn: median", "drawn: 99th percentile", *loads]
    assert lines["Tokens a second"] == ["drawn", *loads]
    stages = [f"drawn: stage {stage}" for stage in range(3)]
    assert lines["Utilization of each stage"] == [*stages, *(f"{stage} (predicted)" for stage in stages)]
    causes = ["missing stages", "no requests", "tokens on their way"]
    assert sorted(lines["Why the first stage is idle"]) == [f"drawn: {cause}" for cause in causes]
    for panel in drawn:
        assert [line.name for line in panel.lines if (line.dash == "dash") != ("(predicted)" in line.name)] == []


def test_what_stands_in_the_panels_is_what_happened(prometheus: str) -> None:
    def most(expression: str) -> float:
        return query(prometheus, f"max(max_over_time(({expression})[3m:1s]))")

    rate = f"rate(pipelinejob_serving_stage_busy_seconds_total{{{JOB}}}[10s])"
    missing = f'rate(pipelinejob_serving_idle_seconds_total{{{JOB}, cause="missing stages"}}[10s])'
    used = f"pipelinejob_serving_cache_blocks_used{{{JOB}}} / pipelinejob_serving_cache_blocks{{{JOB}}}"

    assert 0.1 < most(rate) <= 1.05
    assert most(missing) > 0.1
    assert 0 < most(used) <= 1
    assert most(f"rate(pipelinejob_serving_generated_tokens_total{{{JOB}}}[10s])") > 1


def test_grafanas_types_know_every_field_of_the_dashboard() -> None:
    assert grafana.type_errors(dashboards.boards()["serving.json"]) == []
