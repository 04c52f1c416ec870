"""Every causal language model of transformers, small: whole against 2, 3 and as many stages as it has layers.

    python tests/families.py [FAMILY ...] [--processes 2] [--record FILE]
    python tests/families.py --tensor 2 [FAMILY ...] [--processes 2] [--record FILE]
    python tests/families.py --serve [FAMILY ...] [--processes 2] [--record FILE]
    python tests/families.py --expert 2 [FAMILY ...] [--processes 2] [--record FILE]

For each it prints whether logits and gradients are equal bit for bit, or the model is refused by
name, or could not be built. It ends with an error if any differs in silence: if stages give other
numbers and the check before step 1 does not refuse the model. A record keeps what was found: a
sweep that was stopped goes on, and what was neither equal nor refused is tried again. With
`--tensor` each is shared by so many ranks, threads here, as its family's plan says, and compared
by gradients; one that differs there is refused by the check before step 1. With `--expert` so many
replicas divide each block's experts, likewise. With `--serve` two stages with caches, in chunks
and batches, are held against the whole without; one that differs is refused before it serves.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

EQUAL, REFUSED, UNBUILT, DIFFERENT = "equal", "refused", "could not be built", "DIFFERENT"
LEAST = 100
CLOSE = 1e-3  # of the largest entry of a gradient, where sums are in another order; the bound of the preflight
LIMIT_S = 300  # of processor time, for each

# What a family needs said, as no model can be made of its default config.
_SAID: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": 8, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "xmod": {"default_language": "en_XX"},
}


@dataclass(frozen=True)
class Verdict:
    """What came of a family: one of the four words, and a sentence."""

    family: str
    word: str
    sentence: str
    seconds: float
    is_tied: bool = False


def families() -> list[str]:
    """Return the types of all causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def verdict(family: str, tensor: int = 1, expert: int = 1, *, serves: bool = False) -> Verdict:
    """Cut a family's default model, made small, let ranks share its layers or experts, or let it answer; compare."""
    from pipelinejob_trainer.base.errors import UserError

    begun = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        if serves:
            word, sentence, is_tied = _answering(family)
        else:
            word, sentence, is_tied = _verdict(family) if tensor == expert == 1 else _divided(family, tensor, expert)
    except UserError as error:
        word = REFUSED if error.reason in {"NotCuttable", "NotDivided", "NotServable"} else UNBUILT
        sentence, is_tied = str(error), False
    except Exception as error:  # noqa: BLE001 # whatever a family's code raises, it is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        word, sentence, is_tied = UNBUILT, " ".join(what.split()), False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return Verdict(family, word, sentence, time.process_time() - begun, is_tied)


def _verdict(family: str) -> tuple[str, str, bool]:
    import torch
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    from pipelinejob_trainer.models.huggingface.check import check_with, compare
    from pipelinejob_trainer.models.huggingface.find import num_blocks

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    config = CONFIG_MAPPING[family](**_SAID.get(family, {}))
    found, whole = check_with(config)
    layers = num_blocks(whole.config) + 2
    for stages in (2, 3):
        difference = compare(whole, [layers * stage // stages for stage in range(stages + 1)])
        if difference:
            return DIFFERENT, f"{stages} stages: {difference}", False
    is_tied = bool(getattr(whole.config.get_text_config(), "tie_word_embeddings", False))
    apart = "documents apart" if found.keeps_documents_apart else "one document a row"
    return EQUAL, f"{layers - 2} blocks, {'tied, ' if is_tied else ''}{apart}", is_tied


def _answering(family: str) -> tuple[str, str, bool]:
    import torch
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    from pipelinejob_trainer.serving.check import check_decoding

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    config = CONFIG_MAPPING[family](**_SAID.get(family, {}))
    found = check_decoding(config)
    return EQUAL, found.sentence, bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def _divided(family: str, tensor: int, expert: int) -> tuple[str, str, bool]:
    import torch
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    from pipelinejob.spec.job import Data, Model
    from pipelinejob.spec.workload import HuggingFaceModel, Weights
    from pipelinejob_trainer.models.huggingface.find import num_blocks
    from support.training.meetings import gradients_differ, gradients_of_experts_differ

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    config = CONFIG_MAPPING[family](**_SAID.get(family, {}))
    data = Data(corpus="python-stdlib", sequence_length=12)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        given = HuggingFaceModel(path=folder, weights=Weights.RANDOM)
        model = Model(hugging_face=given, num_layers=num_blocks(config) + 2)
        differ, size = (gradients_differ, tensor) if expert == 1 else (gradients_of_experts_differ, expert)
        error, name = differ(model, data, size, vocabulary=30)
    found = f"largest relative error of a gradient {error:.1e}, of {name}"
    is_tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    return EQUAL if error <= CLOSE else DIFFERENT, found, is_tied


def _settle() -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"
    signal.signal(signal.SIGPROF, _too_long)


def _too_long(*_: object) -> NoReturn:
    raise TimeoutError(f"not done after {LIMIT_S} s of processor time")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="types of models; all if none is given")
    parser.add_argument("--processes", type=int, default=1, help="how many to try at once")
    parser.add_argument("--record", type=Path, help="a file that keeps what was found, to go on from")
    parser.add_argument("--tensor", type=int, default=1, help="how many ranks share each layer")
    parser.add_argument("--serve", action="store_true", help="whether they answer as they should")
    parser.add_argument("--expert", type=int, default=1, help="how many replicas divide each block's experts")
    given = parser.parse_args()
    ask = partial(verdict, tensor=given.tensor, expert=given.expert, serves=given.serve)
    wanted = given.families or families()
    known = _settled(given.record)
    found = [known[family] for family in wanted if family in known]
    with ProcessPoolExecutor(given.processes, initializer=_settle) as pool:
        for each in pool.map(ask, [each for each in wanted if each not in known]):
            found.append(each)
            print(f"{each.family:24} {each.word:18} {each.seconds:5.1f} s  {each.sentence[:400]}", flush=True)
            if given.record:
                with given.record.open("a") as record:
                    record.write(json.dumps(asdict(each)) + "\n")
    is_exact = given.tensor == given.expert == 1 and not given.serve
    return _told(found, is_whole=not given.families, is_exact=is_exact)


def _settled(record: Path | None) -> dict[str, Verdict]:
    """Return what a record says of families that need not be tried again."""
    if record is None or not record.exists():
        return {}
    verdicts = [Verdict(**json.loads(line)) for line in record.read_text().splitlines()]
    return {each.family: each for each in verdicts if each.word in (EQUAL, REFUSED)}


def _told(found: Sequence[Verdict], *, is_whole: bool, is_exact: bool) -> int:
    counts = Counter(each.word for each in found)
    equal = "equal bit for bit" if is_exact else "equal but for rounding"
    different = "different in silence" if is_exact else "different, and so refused before step 1"
    print(
        f"{len(found)} families: {counts[EQUAL]} {equal} ({sum(each.is_tied for each in found)} tied),"
        f" {counts[REFUSED]} refused by name, {counts[UNBUILT]} could not be built, {counts[DIFFERENT]} {different}"
    )
    is_short = is_whole and counts[EQUAL] + counts[REFUSED] < LEAST
    if is_short:
        print(f"fewer than {LEAST} are settled")
    return 1 if (counts[DIFFERENT] and is_exact) or is_short else 0


if __name__ == "__main__":
    sys.exit(main())
