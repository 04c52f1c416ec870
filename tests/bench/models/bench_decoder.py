"""Measures one block of the built-in decoder against transformers' own Llama layer, forward and backward.

    python tests/bench/models/bench_decoder.py [--rounds 15]

One thread, fp32, the same sizes; theirs with scaled_dot_product_attention and rotary tables made
beforehand, as its model does. The two alternate within each round; the figure is the median over
rounds of processor time here by that there. Ends with 1 if it is above 1.05 for any size.
"""

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from pipelinejob.spec.job import DecoderModel
from pipelinejob_trainer.models.decoder.layers import Block

BOUND = 1.05
WARM_UP = 3
SIZES = [  # hidden, heads, of keys and values, feed-forward, rows, length
    (128, 4, 2, 352, 2, 128),
    (256, 8, 4, 704, 2, 256),
    (576, 9, 3, 1536, 1, 512),
    (1024, 16, 16, 2816, 1, 256),
]


def ratio(sizes: tuple[int, ...], rounds: int) -> tuple[float, float, float]:
    """Return milliseconds here and there, and the median ratio."""
    hidden, heads, kv_heads, inner, rows, length = sizes
    ours = Block(
        DecoderModel(
            num_layers=1, hidden_size=hidden, num_heads=heads, num_key_value_heads=kv_heads, feed_forward_size=inner
        )
    )
    config = LlamaConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        num_hidden_layers=1,
        attn_implementation="sdpa",
    )
    theirs = LlamaDecoderLayer(config, 0)
    stream, gradient = torch.randn(rows, length, hidden, requires_grad=True), torch.randn(rows, length, hidden)
    tables = LlamaRotaryEmbedding(config)(stream, torch.arange(length)[None])

    def seconds(run: Callable[[], torch.Tensor]) -> float:
        for each in (stream, *ours.parameters(), *theirs.parameters()):
            each.grad = None
        began = time.thread_time()
        run().backward(gradient)
        return time.thread_time() - began

    taken = [
        (
            seconds(lambda: ours(stream)),
            seconds(lambda: theirs(stream, position_embeddings=tables, attention_mask=None)),
        )
        for _ in range(WARM_UP + rounds)
    ][WARM_UP:]
    here, there = (1e3 * median(each) for each in zip(*taken, strict=True))
    return here, there, median(mine / other for mine, other in taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    ratios = []
    for sizes in SIZES:
        here, there, of_both = ratio(sizes, rounds)
        print(f"{sizes}: {here:.1f} ms here, {there:.1f} ms there, ratio {of_both:.3f}", flush=True)
        ratios.append(of_both)
    return int(max(ratios) > BOUND)


if __name__ == "__main__":
    sys.exit(main())
