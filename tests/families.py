"""Every causal language model of transformers, small: whole against 2, 3 and as many stages as it has layers.

    python tests/families.py [FAMILY ...] [--processes 2]

For each it prints whether logits and gradients are equal bit for bit, or the model is refused by name, or could not be
built. It ends with an error if any differs in silence: if stages give other numbers and the check before step 1 does
not refuse the model.
"""

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

EQUAL, REFUSED, UNBUILT, DIFFERENT = "equal", "refused", "could not be built", "DIFFERENT"
LEAST = 100


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


def verdict(family: str) -> Verdict:
    """Cut a family's default model, made small, and compare."""
    from pipelinejob_trainer.base.errors import UserError

    begun = time.perf_counter()
    try:
        word, sentence, is_tied = _verdict(family)
    except UserError as error:
        word = UNBUILT if error.reason == "NotChecked" else REFUSED
        sentence, is_tied = str(error), False
    except Exception as error:  # noqa: BLE001 # whatever a family's code raises, it is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        word, sentence, is_tied = UNBUILT, " ".join(what.split()), False
    return Verdict(family, word, sentence, time.perf_counter() - begun, is_tied)


def _verdict(family: str) -> tuple[str, str, bool]:
    import torch
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    from pipelinejob_trainer.models.huggingface.check import check_with, compare
    from pipelinejob_trainer.models.huggingface.find import num_blocks

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    config = CONFIG_MAPPING[family]()
    found, whole = check_with(config)
    layers = num_blocks(whole.config) + 2
    for stages in (2, 3):
        difference = compare(whole, [layers * stage // stages for stage in range(stages + 1)])
        if difference:
            return DIFFERENT, f"{stages} stages: {difference}", False
    is_tied = bool(whole.config.get_text_config().tie_word_embeddings)
    apart = "documents apart" if found.keeps_documents_apart else "one document a row"
    return EQUAL, f"{layers - 2} blocks, {'tied, ' if is_tied else ''}{apart}", is_tied


def _settle() -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="types of models; all if none is given")
    parser.add_argument("--processes", type=int, default=1, help="how many to try at once")
    given = parser.parse_args()
    wanted = given.families or families()
    counts: Counter[str] = Counter()
    with ProcessPoolExecutor(given.processes, initializer=_settle) as pool:
        for each in pool.map(verdict, wanted):
            counts[each.word] += 1
            counts["tied"] += each.is_tied
            print(f"{each.family:24} {each.word:18} {each.seconds:5.1f} s  {each.sentence[:400]}", flush=True)
    settled = counts[EQUAL] + counts[REFUSED]
    print(
        f"{len(wanted)} families: {counts[EQUAL]} equal bit for bit ({counts['tied']} tied), {counts[REFUSED]} refused"
        f" by name, {counts[UNBUILT]} could not be built, {counts[DIFFERENT]} different in silence"
    )
    is_short = not given.families and settled < LEAST
    if is_short:
        print(f"fewer than {LEAST} are settled")
    return 1 if counts[DIFFERENT] or is_short else 0


if __name__ == "__main__":
    sys.exit(main())
