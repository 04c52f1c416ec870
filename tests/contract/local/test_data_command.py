"""`pipelinejob data` and `pipelinejob run` on what it prepared, from the command line alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from support.local.local_cli import Run
from support.tokens import preparing
from support.tokens.preparing import texts, tokenizer_folder

COMMAND = [sys.executable, "-c", "from pipelinejob_operator.cli import main; main()"]


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `pipelinejob data`."""
    return subprocess.run(
        [*COMMAND, "data", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )


GPT = {"gpt": {"numLayers": 2, "hiddenSize": 32, "numHeads": 2, "vocabularySize": 512}}
DECODER = {"decoder": GPT["gpt"] | {"feedForwardSize": 64}}


def job(tokens: list[dict[str, object]], model: dict[str, object]) -> dict[str, object]:
    return {
        "apiVersion": "pipelinejob.io/v1alpha1",
        "kind": "PipelineJob",
        "metadata": {"name": "tokens"},
        "spec": {
            "model": model,
            "data": {"tokens": tokens, "sequenceLength": 32},
            "parallelism": {"pipeline": 2},
            "schedule": {"name": "1F1B", "microBatches": 4, "microBatchSize": 4},
            "training": {"steps": 40, "learningRate": 0.01, "warmupSteps": 5},
            "evaluation": {"intervalSteps": 20},
            "device": "cpu",
        },
    }


def test_a_job_trains_on_a_mixture_of_prepared_tokens_and_its_loss_falls(tmp_path: Path) -> None:
    tokenizer = tokenizer_folder(tmp_path / "tokenizer", size=500)
    preparing.prepared(tmp_path / "two", tokenizer, texts(40)[20:])
    source = preparing.write_lines(tmp_path / "one.jsonl", texts(10))
    done = command("prepare", "--from", source, "--tokenizer", tokenizer, "--to", tmp_path / "one", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "one: 10 documents, " in done.stdout
    shown = command("show", tmp_path / "one", "--verify", "--json")
    assert json.loads(shown.stdout)["documents"] == 10
    assert json.loads(shown.stdout)["isVerified"] is True

    manifest = tmp_path / "job.yaml"
    sources = [{"path": str(tmp_path / "one"), "weight": 3}, {"path": str(tmp_path / "two")}]
    manifest.write_text(yaml.safe_dump(job(sources, DECODER)))
    run = Run(manifest, tmp_path / "run", "--no-profile", "--prompt", "The statement")

    assert run.wait() == 0, run.said
    records = [json.loads(line) for line in (tmp_path / "run/steps.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records]
    assert losses[0] > 5.5  # log 500 is 6.2
    assert sum(losses[-5:]) / 5 < losses[0] - 0.8
    assert records[-1]["evaluationLoss"] < losses[0] - 0.6
    logs = "".join(file.read_text() for file in (tmp_path / "run/logs").iterdir())
    assert "one: 75.0% of the sequences, " in logs
    assert "sequences (Documents, 9" in logs  # % filled: the decoder keeps documents apart
    assert "The statement" in run.said


def test_a_job_whose_model_is_too_small_for_the_tokenizer_says_so(tmp_path: Path) -> None:
    tokenizer = tokenizer_folder(tmp_path / "tokenizer", size=1000)
    preparing.prepared(tmp_path / "tokens", tokenizer, texts(5))
    manifest = tmp_path / "job.yaml"
    manifest.write_text(yaml.safe_dump(job([{"path": str(tmp_path / "tokens")}], GPT)))
    run = Run(manifest, tmp_path / "run", "--no-profile", "--prompt", "")

    assert run.wait() == 1
    assert "of a tokenizer with 1000 tokens, but the model's vocabulary ends at 511" in " ".join(run.said.split())


def test_what_is_wrong_ends_with_a_sentence_and_a_code(tmp_path: Path) -> None:
    nothing = command("prepare", "--tokenizer", tmp_path, "--to", tmp_path / "x")
    no_tokenizer = command("prepare", "--from", __file__, "--tokenizer", tmp_path, "--to", tmp_path / "x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    text = tmp_path / "a.txt"
    text.write_text("one two three")
    something_else = command("prepare", "--from", text, "--tokenizer", tokenizer, "--to", tmp_path / "other")

    assert (nothing.returncode, no_tokenizer.returncode, something_else.returncode) == (2, 2, 5)
    assert "error: --from: nothing is named to read" in nothing.stderr
    assert "holds no tokenizer.json" in no_tokenizer.stderr
    assert "holds something else (file); choose another folder" in something_else.stderr
    assert "Traceback" not in nothing.stderr + no_tokenizer.stderr + something_else.stderr
