"""A real fine-tune: SmolLM2-135M-Instruct on chats made of Python's own documentation, through the commands alone.

    python tests/real.py [--steps 20] [--stages 1 2 3] [--lora] [--length 128] [--rows 2] [--micro-batches 2]
                         [--output real]

Prepares the data, trains once for each number of stages with `pipelinejob run`, exports, loads
what was exported with transformers, and lets it answer. Ends with 1 unless every split's losses
are the single process's, the loss on held-out chats falls, and the exported model has the loss
that the trainer measured last. No network but for the model's package. Minutes on two idle cores:
135 million parameters, about 3 GB of memory in all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import pydoc_chats
import smollm2

_COMMAND = (sys.executable, "-m", "pipelinejob")
_TOLERANCE = 1e-3  # of losses: sums in another order, over some steps
_QUESTION = "What does Python's documentation say about lists?"


def main() -> int:
    asked = _parser().parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    model, tokens = smollm2.folder(), asked.output / "tokens"
    chats = asked.output / "chats.jsonl"
    print(f"{pydoc_chats.write(chats)} conversations", flush=True)
    _run("data", "prepare", "--from", chats, "--messages-column", "messages", "--tokenizer", model, "--to", tokens)
    runs = {stages: _trained(asked, model, tokens, stages) for stages in asked.stages}
    faults = [*_faults_of(runs), *_faults_of_export(asked, runs, max(asked.stages))]
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


def _trained(asked: argparse.Namespace, model: Path, tokens: Path, stages: int) -> list[dict[str, Any]]:
    """Train on so many stages; return a record for each step."""
    folder = asked.output / f"stages-{stages}"
    manifest = asked.output / f"stages-{stages}.yaml"
    manifest.write_text(yaml.safe_dump(_manifest(asked, model, tokens, stages), sort_keys=False))
    _run("validate", "--fill", manifest)
    _run("run", manifest, "--output", folder, "--no-profile", "--fresh")
    records = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    held_out = [each["evaluationLoss"] for each in records if each.get("evaluationLoss") is not None]
    print(
        f"{stages} stages: loss {records[0]['loss']:.4f} -> {records[-1]['loss']:.4f}, held out {held_out}", flush=True
    )
    return records


def _manifest(asked: argparse.Namespace, model: Path, tokens: Path, stages: int) -> dict[str, Any]:
    training: dict[str, Any] = {"steps": asked.steps, "learningRate": 5e-5, "warmupSteps": 2}
    if asked.lora:
        training |= {"learningRate": 1e-3, "lora": {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}}
    spec = {
        "model": {"huggingFace": {"path": str(model)}},
        "data": {"tokens": [{"path": str(tokens.resolve())}], "sequenceLength": asked.length},
        "parallelism": {"pipeline": stages},
        "schedule": {"name": "1F1B", "microBatches": asked.micro_batches, "microBatchSize": asked.rows},
        "training": training,
        "evaluation": {"intervalSteps": max(asked.steps // 2, 1), "batches": 2},
        "checkpoint": {"intervalSteps": 0},
        "device": "cpu",
    }
    return {"apiVersion": "pipelinejob.io/v1alpha1", "kind": "PipelineJob", "metadata": {"name": "real"}, "spec": spec}


def _faults_of(runs: dict[int, list[dict[str, Any]]]) -> list[str]:
    whole = next(iter(runs.values()))
    found = []
    for stages, records in runs.items():
        apart = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(records, whole, strict=True))
        print(f"{stages} stages: losses differ by {apart:.1e} at most from those of {next(iter(runs))}")
        if apart > _TOLERANCE:
            found.append(f"{stages} stages: losses differ by {apart:.1e}")
        held_out = [each["evaluationLoss"] for each in records if each.get("evaluationLoss") is not None]
        if len(held_out) > 1 and not held_out[-1] < held_out[0]:
            found.append(f"{stages} stages: the loss on held-out chats does not fall: {held_out}")
    return found


def _faults_of_export(asked: argparse.Namespace, runs: dict[int, list[dict[str, Any]]], stages: int) -> list[str]:
    """Export, and hold the exported model's loss on the held-out chats against the trainer's last."""
    exported = asked.output / "exported"
    _run("export", asked.output / f"stages-{stages}", "--to", exported)
    trained = [each["evaluationLoss"] for each in runs[stages] if each.get("evaluationLoss") is not None][-1]
    theirs = _loss_of(exported, asked.output / f"stages-{stages}" / "plan.json")
    print(f"held out: {trained:.6f} as trained, {theirs:.6f} as transformers has the exported model")
    print(f"asked: {_QUESTION}\nanswers: {_answer(exported)}")
    apart = abs(theirs - trained) / trained
    return [f"the exported model's loss is {theirs:.6f}, not {trained:.6f}"] if apart > _TOLERANCE else []


def _loss_of(folder: Path, plan_file: Path) -> float:
    """Return the loss of a folder's model on what the plan evaluates, a mean over the targets that count."""
    import torch
    from torch.nn import functional
    from transformers import AutoModelForCausalLM

    from pipelinejob.contract.plan import Plan
    from pipelinejob_trainer.data.dataset import open_dataset, open_evaluation

    plan = Plan.from_json(plan_file.read_bytes())
    training = open_dataset(
        plan.data,
        schedule=plan.schedule,
        replicas=1,
        seed=plan.training.seed,
        model=plan.model,
        evaluation=plan.evaluation,
    )
    assert plan.evaluation is not None
    batches = open_evaluation(plan.data, plan.evaluation, training=training)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    total = count = 0.0
    with torch.no_grad():
        for batch in range(1, plan.evaluation.batches + 1):
            for micro_batch in range(plan.schedule.micro_batches):
                read = batches.batch(batch, 0, micro_batch)
                places = {} if read.positions is None else {"position_ids": read.positions}
                logits = model(input_ids=read.tokens, use_cache=False, **places).logits
                total += float(functional.cross_entropy(logits.flatten(0, 1), read.targets.flatten(), reduction="sum"))
                count += float((read.targets != -100).sum())
    return total / count


def _answer(folder: Path) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": _QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**asked, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(answer[0][asked["input_ids"].shape[1] :], skip_special_tokens=True))


def _run(*arguments: object) -> None:
    subprocess.run([*_COMMAND, *map(str, arguments)], check=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lora", action="store_true", help="adapters alone, instead of all weights")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--rows", type=int, default=2, help="sequences of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("real"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
