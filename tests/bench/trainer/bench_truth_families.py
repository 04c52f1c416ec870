"""Measures how far predictions are from the truth for models of transformers: step times and peak memory.

    python tests/bench/trainer/bench_truth_families.py [--cases 20] [--seed 1] [--output bench-truth-families.json]

Small models of random families and sizes, with random weights, are cut at random over two or three
processes under a random schedule, profiled, planned, and trained by the trainer's own loop, as in
`bench_truth.py`; then again with every allocation of tensors recorded. Takes about eight minutes.
Ends with 1 unless step times are off by at most 5 % in the mean and 15 % in the worst case, and
peaks by at most 5 % in the mean.
"""

import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_truth  # first: it sets what torch reads when it is loaded
from bench_truth import MEMORY_MEAN, REAL_MEAN, REAL_WORST, report, rows_of
from harness import parser, write
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Model, PipelineJobSpec, ScheduleSpec
from pipelinejob.spec.workload import HuggingFaceModel, Weights
from truth_cases import REAL_STEPS, SETTLING_STEPS, drawn_cut, job_of

RANKS = (2, 2, 3)  # of which two compute at once
STEP_S = (0.1, 0.5)
OPERATIONS_PER_S = 3e10  # of two cores, roughly: only to draw steps that are neither too short nor too long
ONE_CHUNK = (ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1)
TWO_CHUNKS = (ScheduleName.INTERLEAVED, ScheduleName.ZB_V)


def _llama_like(hidden: int, blocks: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 8 * hidden // 3 // 16 * 16,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": 1 if hidden % 128 else hidden // 128,
        "vocab_size": vocabulary,
    }


def _with_heads_of_64(hidden: int, blocks: int, vocabulary: int) -> dict[str, Any]:
    return _llama_like(hidden, blocks, vocabulary) | {"head_dim": 64}


def _of_gpt2(hidden: int, blocks: int, vocabulary: int) -> dict[str, Any]:
    return {"n_embd": hidden, "n_layer": blocks, "n_head": hidden // 64, "vocab_size": vocabulary, "n_positions": 512}


def _of_neox(hidden: int, blocks: int, vocabulary: int) -> dict[str, Any]:
    sizes = _llama_like(hidden, blocks, vocabulary)
    del sizes["num_key_value_heads"]
    return sizes | {"intermediate_size": 4 * hidden}


def _of_opt(hidden: int, blocks: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": hidden // 64,
        "vocab_size": vocabulary,
        "word_embed_proj_dim": hidden,
        "max_position_embeddings": 512,
    }


def _of_experts(hidden: int, blocks: int, vocabulary: int) -> dict[str, Any]:
    sizes = _llama_like(hidden, blocks, vocabulary)
    return sizes | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": hidden}


FAMILIES: dict[str, Callable[[int, int, int], dict[str, Any]]] = {
    "llama": _llama_like,
    "mistral": _llama_like,
    "qwen2": _llama_like,
    "qwen3": _with_heads_of_64,
    "gemma": _with_heads_of_64,
    "olmo2": _llama_like,
    "starcoder2": _of_neox,
    "gpt2": _of_gpt2,
    "gpt_neox": _of_neox,
    "opt": _of_opt,
    "mixtral": _of_experts,
}


def drawn_job(seed: int, folders: Path) -> PipelineJobSpec:
    """Draw a family, its sizes, its cut, a schedule and micro-batches; the model's config is written to a folder."""
    from transformers import AutoConfig

    draw = random.Random(seed)
    family = draw.choice(sorted(FAMILIES))
    ranks = draw.choice(RANKS)
    shortest_s, longest_s = STEP_S
    while True:
        hidden, blocks = draw.choice((128, 192, 256, 384)), draw.randint(4, 8)
        vocabulary, length = draw.choice((256, 1024, 4096)), draw.choice((64, 128, 256))
        name = draw.choice((*ONE_CHUNK, *(TWO_CHUNKS if blocks + 2 >= 2 * ranks else ())))
        schedule = ScheduleSpec(
            name=name,
            micro_batches=ranks * draw.randint(1, 4),
            micro_batch_size=draw.choice((1, 2, 3)),
            virtual_stages=2 if name is ScheduleName.INTERLEAVED else None,
            recompute=draw.random() < 0.2,  # one of five
        )
        parameters = 12 * hidden**2 * blocks + hidden * vocabulary
        operations = 6 * parameters * schedule.sequences * length
        if shortest_s <= operations / OPERATIONS_PER_S <= longest_s:
            break
    folder = folders / f"{seed}-{family}"
    sizes = FAMILIES[family](hidden, blocks, vocabulary)
    AutoConfig.for_model(family, **sizes, bos_token_id=0, eos_token_id=0, pad_token_id=None).save_pretrained(folder)
    return job_of(
        Model(hugging_face=HuggingFaceModel(path=str(folder), weights=Weights.RANDOM), num_layers=blocks + 2),
        ranks=ranks,
        schedule=schedule,
        cut=drawn_cut(draw, blocks + 2, ranks * (2 if name in TWO_CHUNKS else 1)),
        sequence_length=length,
        steps=SETTLING_STEPS + REAL_STEPS + 1,
    )


def main() -> int:
    options = parser(__doc__, rounds=1, output="bench-truth-families.json")
    options.add_argument("--cases", type=int, default=20)
    options.add_argument("--seed", type=int, default=1, help="of the first case; the others count on")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jobs = [drawn_job(seed, Path(folder)) for seed in range(given.seed, given.seed + given.cases)]
        jobs.sort(key=lambda spec: spec.parallelism.pipeline)
        rows = list(rows_of(jobs, is_real=True))
    bounds = {"mean error": REAL_MEAN, "worst error": REAL_WORST, "mean error of memory": MEMORY_MEAN}
    holds = report("models of transformers", rows, bounds)
    write(given.output, {"cases": given.cases, "seed": given.seed, "rows": [row.figures for row in rows]})
    return 0 if holds else 1


if __name__ == "__main__":
    assert bench_truth  # its import counts
    sys.exit(main())
