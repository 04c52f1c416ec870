"""Measures the price of generality: a model of transformers, cut generically, beside the built-in decoder.

    python tests/bench/models/bench_generality.py [--rounds 9] [--output bench-generality.json]

The same weights of a small Llama, once as `model.huggingFace`, once as `model.decoder`, each whole
in one stage of one thread, fp32, the trainer's own passes; both take turns within each round. The
figure is the median over rounds of processor time there by that here, of forward and backward
passes of a micro-batch. Losses must agree to 1e-5, or the figure says nothing. There is no bound.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))

from harness import load, parser, write
from pipelinejob.spec.families.decoder_config import decoder_model_of
from pipelinejob.spec.job import Data, DecoderModel, Model, Precision
from pipelinejob.spec.workload import HuggingFaceModel
from pipelinejob_trainer.models.decoder.names import theirs_of_ours
from pipelinejob_trainer.models.part import Part, build_part
from pipelinejob_trainer.stage.stage import Stage

CPU = torch.device("cpu")
CLOSE = 1e-5
WARM_UP = 2
SIZES = [  # hidden, heads, of keys and values, feed-forward, blocks, vocabulary, rows, length
    (128, 4, 2, 352, 8, 1024, 1, 64),
    (256, 8, 4, 704, 6, 1024, 2, 128),
    (576, 9, 3, 1536, 4, 8192, 1, 256),
]


def stage_of(part: Part) -> Stage:
    """Return a whole model as one stage."""
    (layers,) = part.chunks
    return Stage(layers, is_first=True, is_last=True, precision=Precision.FP32, device=CPU)


def both(sizes: tuple[int, ...], folder: Path) -> tuple[Stage, Stage]:
    """Return the generic cut and the built-in decoder of the same weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden, heads, kv_heads, inner, blocks, vocabulary, _, length = sizes
    config = LlamaConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        tie_word_embeddings=False,
    )
    theirs = AutoModelForCausalLM.from_config(config)
    theirs.save_pretrained(folder)
    data, stretches = Data(corpus="python-stdlib", sequence_length=length), [(0, blocks + 2)]
    generic = Model(hugging_face=HuggingFaceModel(path=str(folder)), num_layers=blocks + 2)
    model = decoder_model_of(config.to_dict())
    assert isinstance(model, DecoderModel), model
    own = build_part(Model(decoder=model), data, stretches=stretches, seed=0)
    weights, names = theirs.state_dict(), theirs_of_ours(model)
    own.fill({ours: weights[name].clone() for ours, name in names.items()})
    return stage_of(build_part(generic, data, stretches=stretches, seed=0)), stage_of(own)


def passed(stage: Stage, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """Run a micro-batch there and back; return the seconds and the loss."""
    for _, parameter in stage.named_parameters():
        parameter.grad = None
    began = time.thread_time()
    loss: Any = stage.forward(0, tokens.clone(), targets, seed=0)
    stage.backward(0)
    return time.thread_time() - began, float(loss)


def compare(sizes: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Let both take turns; return milliseconds and their ratio."""
    *_, vocabulary, rows, length = sizes
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        stages = both(sizes, Path(folder))
    text = torch.randint(vocabulary, (rows, length + 1))
    tokens, targets = text[:, :-1], text[:, 1:].contiguous()
    taken = []
    for number in range(WARM_UP + rounds):
        order = (0, 1) if number % 2 else (1, 0)
        found = {each: passed(stages[each], tokens, targets) for each in order}
        assert abs(found[0][1] - found[1][1]) <= CLOSE * found[1][1], "the two are not the same model"
        if number >= WARM_UP:
            taken.append((found[0][0], found[1][0]))
    there, here = (1e3 * median(each) for each in zip(*taken, strict=True))
    return {"generic_ms": there, "decoder_ms": here, "ratio": median(a / b for a, b in taken)}


def main() -> int:
    given = parser(__doc__, rounds=9, output="bench-generality.json").parse_args()
    torch.set_num_threads(1)
    found = {}
    print(
        f"load {load():.1f}\n| hidden | blocks | rows x length | generic ms | decoder ms | price |\n" + "|---" * 6 + "|"
    )
    for sizes in SIZES:
        hidden, _, _, _, blocks, _, rows, length = sizes
        each = found[f"{hidden}x{blocks}"] = compare(sizes, given.rounds)
        print(
            f"| {hidden} | {blocks} | {rows} x {length} | {each['generic_ms']:.1f} | {each['decoder_ms']:.1f} |"
            f" {each['ratio'] - 1:+.1%} |",
            flush=True,
        )
    write(given.output, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
