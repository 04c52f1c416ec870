"""A batch under the real command, of which each stage is killed: every request is answered, once, and rightly."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelinejob.base import names
from pipelinejob.contract.trained import Trained
from pipelinejob.spec.job import Data, Model, Training
from pipelinejob_trainer.models.part import Part
from pipelinejob_trainer.sample import Request, generate
from support.local.local_cli import Run
from support.training.saved_models import moved, saved, whole

pytestmark = pytest.mark.xdist_group("processor-heavy")
GPT = {"gpt": {"numLayers": 2, "hiddenSize": 16, "numHeads": 2}}
LENGTH, NEW, REQUESTS = 64, 30, 200


@pytest.fixture
def part(tmp_path: Path) -> Part:
    """Return a model, unsplit, whose checkpoint two stages have saved."""
    model = Model.model_validate(GPT)
    data = Data(paths=("unused",), sequence_length=LENGTH)
    part = moved(whole(Trained(model=model, data=data, training=Training(steps=1, seed=3))))
    saved(tmp_path / "saved", part, 2)
    return part


@pytest.fixture
def run(part: Part, tmp_path: Path) -> Iterator[Run]:
    serving = {"fromCheckpoint": True, "cacheTokens": 1024, "groupSize": 2, "chunkTokens": 16}
    spec = {"mode": "Serve", "model": GPT, "parallelism": {"pipeline": 2}, "device": "cpu", "serving": serving}
    manifest = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "tiny"}, "spec": spec}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(manifest))
    asked = [
        {
            "custom_id": f"r{number}",
            "body": {"model": "tiny", "prompt": prompt(number), "max_tokens": NEW, "temperature": 0},
        }
        for number in range(REQUESTS)
    ]
    (tmp_path / "in").write_text("".join(f"{json.dumps(each)}\n" for each in asked))
    files = ["--prompts", str(tmp_path / "in"), "--answers", str(tmp_path / "out")]
    started = Run(
        tmp_path / "tiny.yaml", tmp_path / "run", "--checkpoints", str(tmp_path / "saved"), *files, command="serve"
    )
    yield started
    started.end()


def prompt(number: int) -> str:
    return f"def f{number}("


def test_a_batch_whose_stages_are_killed_answers_each_request_once_as_the_unsplit_model(
    run: Run, part: Part, tmp_path: Path
) -> None:
    answers = tmp_path / "out"

    def count() -> int:
        return answers.read_bytes().count(b"\n") if answers.exists() else 0

    for stage in ("0", "1"):
        reached = count()
        run.until(lambda reached=reached: count() >= reached + 5)
        os.kill(run.stages()[stage], signal.SIGKILL)

    assert run.wait() == 0, run.said
    assert "All requests are answered" in run.said
    lines = [json.loads(each) for each in answers.read_text().splitlines()]
    texts = {each["custom_id"]: each["response"]["body"]["choices"][0]["text"] for each in lines}
    assert len(lines) == len(texts) == REQUESTS
    for number in range(0, REQUESTS, 40):
        request = Request(prompt=prompt(number), tokens=NEW, seed=0, temperature=0)
        assert texts[f"r{number}"] == generate(part, request, context=LENGTH)
