"""A real model's greedy answers over stages, beside transformers' generate in one process.

    python tests/real_answers.py [--stages 2 3 4] [--prompts 12] [--tokens 32]

SmolLM2-135M-Instruct (tests/smollm2.py), stages as threads of this process with sockets between
them. Each prompt is answered alone and beside all others, in chunks and whole. Where an answer
parts from generate's, the margin between the two likeliest tokens there is told: sums in batches
of other sizes are added in another order, which can turn a choice only where both are near. With
`batchInvariant` each answer must have the same bits alone and beside others. Prints JSON; ends
with 1 if an answer parts at a margin of `NEAR` or more, or if a bit is another.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import smollm2
from pipelinejob_trainer.serving.stage_model import load_stage
from support.serving.greedy import NEAR, Greedy, bits, generated, parted
from support.serving.serving_chains import HANG_S, cuts, serving, spec_of

BLOCKS, BLOCK, NUM_BLOCKS = 30, 16, 256
QUESTIONS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time there was a",
    "The three laws of motion say that",
    "import os\nfor name in os.listdir('.'):",
    "A pipeline of stages is busy when",
    "2 + 2 =",
    "Roses are red,",
    "To bake bread one needs",
    "The quick brown fox",
    "In 1969, men first",
    "Water boils at",
)


def main() -> int:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--prompts", type=int, default=len(QUESTIONS))
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = smollm2.folder()
    prompts = _prompts(folder, given.prompts)
    expected = [_generated(folder, prompt, given.tokens) for prompt in prompts]
    rows = [_compared(folder, stages, prompts, expected) for stages in given.stages]
    print(json.dumps({"rows": rows, "near": NEAR, "load_average": os.getloadavg()[0]}, indent=1))
    is_amiss = any(margin >= NEAR for row in rows for margin in row["parted_at_margins"])
    return 1 if is_amiss or not all(row["same_bits_with_batch_invariant"] for row in rows) else 0


def _prompts(folder: Path, count: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    asked = [text * (1 + 3 * (place % 3)) for place, text in enumerate(QUESTIONS[:count])]  # of unlike lengths
    return [tokenizer(text)["input_ids"] for text in asked]


_models: dict[Path, Any] = {}


def _generated(folder: Path, prompt: Sequence[int], new: int) -> Greedy:
    from transformers import AutoModelForCausalLM

    if folder not in _models:
        _models[folder] = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
    return generated(_models[folder], prompt, new)


def _compared(folder: Path, stages: int, prompts: Sequence[list[int]], expected: Sequence[Greedy]) -> dict[str, Any]:
    new, begun = len(expected[0].tokens), time.perf_counter()
    margins: list[float] = []
    room = {"block": BLOCK, "num_blocks": NUM_BLOCKS}
    forwards = _stages(folder, stages, apart=False)
    for chunk in (8, 512):
        with serving(forwards, chunk_tokens=chunk, **room) as served:
            alone = [served.submit(prompt, new) for prompt in prompts[:1]]
            assert alone[0].done.wait(HANG_S)
            for prompt in prompts[1:]:
                alone.append(served.submit(prompt, new))
                assert alone[-1].done.wait(HANG_S)
            together = [served.submit(prompt, new) for prompt in prompts]
            near = [parted(told, one) for told, one in zip([*alone, *together], [*expected, *expected], strict=True)]
        margins += (each for each in near if each is not None)
    return {
        "stages": stages,
        "answers": 4 * len(prompts),
        "tokens_each": new,
        "parted_at_margins": margins,
        "same_bits_with_batch_invariant": _same_bits(_stages(folder, stages, apart=True), prompts, new, room),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _stages(folder: Path, stages: int, *, apart: bool) -> list[Any]:
    model = spec_of(folder, blocks=BLOCKS)
    return [
        load_stage(model, stretch, num_blocks=NUM_BLOCKS, block=BLOCK, apart=apart).forward
        for stretch in cuts(BLOCKS + 2, stages)
    ]


def _same_bits(forwards: list[Any], prompts: Sequence[list[int]], new: int, room: dict[str, int]) -> bool:
    with serving(forwards, chunk_tokens=16, batch_invariant=True, **room) as served:
        together = [served.submit(prompt, new, logprobs=0) for prompt in prompts]
        assert all(told.done.wait(HANG_S) for told in together)
        for prompt, told in zip(prompts[:3], together, strict=False):
            alone = served.submit(prompt, new, logprobs=0)
            assert alone.done.wait(HANG_S)
            if bits(alone) != bits(told):
                return False
    return True


if __name__ == "__main__":
    sys.exit(main())
