"""Measures what a stage of a 7B model holds while it reads its weights, beside its own share of them.

    python tests/bench/models/bench_loading.py [--blocks 4] [--layers 1 5] [--folder DIR] [--output bench-loading.json]
    python tests/bench/models/bench_loading.py --folder $(python tests/smollm2.py) --blocks 30 --layers 0 11

Blocks of Llama-2-7B's sizes, embedding and head beside them, random, in bf16, are written into a
folder in pieces, as a download has them; a process of its own makes a stage of these layers (0 is
the embedding), as a rank does, and reads them. What counts is the peak of its resident memory from
then on, less what the process held before, by the stage's parameters in fp32. It has imported all
that it needs and has checked a cut of that model once by then, so that the libraries' code is in
memory: their pages are those of files, and no stage's share. With 4 of its 32 blocks the folder
takes 2.1 GB; the others would only lie there. Ends with 1 if it is above 1.1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOUND = 1.1
SIZES = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


def stage_of(folder: Path, blocks: int, layers: tuple[int, int]) -> dict[str, float]:
    """Make a stage of layers [first, end) here, and return bytes and seconds."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from pipelinejob.spec.job import Data, Model
    from pipelinejob.spec.workload import HuggingFaceModel
    from pipelinejob_trainer.models.huggingface.check import check
    from pipelinejob_trainer.models.part import build_part

    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(folder)
    assert AutoModelForCausalLM._model_mapping[type(config)]  # imports its code
    check(config)  # runs code that was not in memory before, which counts for nobody
    model = Model(hugging_face=HuggingFaceModel(path=str(folder)), num_layers=blocks + 2)
    data = Data(corpus="python-stdlib", sequence_length=64)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, began = _bytes("VmHWM"), time.perf_counter()
    part = build_part(model, data, stretches=[layers], seed=0)
    seconds, peak = time.perf_counter() - began, _bytes("VmHWM") - before
    return {
        "share": sum(each.nbytes for each in part.named_parameters().values()),
        "peak": peak,
        "held": _bytes("VmRSS") - before,
        "seconds": seconds,
    }


def _bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--blocks", type=int, default=4, help="of the folder's model; of 32, where it is written here")
    options.add_argument("--layers", type=int, nargs=2, default=(1, 5), help="the stage's: the first, and what follows")
    options.add_argument("--folder", type=Path, help="to write the weights into, or one that has them")
    options.add_argument("--output", type=Path, default=Path("bench-loading.json"))
    options.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.measure:
        print(json.dumps(stage_of(given.folder, given.blocks, tuple(given.layers))))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        if not (folder / "config.json").exists():
            sys.path.insert(0, str(Path(__file__).parents[2]))
            from support.training.saved_models import in_pieces

            folder.mkdir(parents=True, exist_ok=True)
            in_pieces(folder, "llama", SIZES | {"num_hidden_layers": given.blocks})
        numbers = [f"--blocks={given.blocks}", f"--folder={folder}", "--layers", *map(str, given.layers)]
        command = [sys.executable, __file__, "--measure", *numbers]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(said.splitlines()[-1])
    ratio = found["peak"] / found["share"]
    what = given.folder.name if given.folder else "Llama-2-7B's sizes"
    print(
        f"layers {given.layers[0]} to {given.layers[1] - 1} of {what}: {found['share'] / 2**30:.2f} GiB of parameters"
        f" in fp32, peak {found['peak'] / 2**30:.2f} GiB, {ratio:.3f} times (at most {BOUND}), in"
        f" {found['seconds']:.0f} s; load {os.getloadavg()[0]:.1f}"
    )
    given.output.write_text(json.dumps({"load": os.getloadavg(), "ratio": ratio, **found}, indent=2) + "\n")
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
