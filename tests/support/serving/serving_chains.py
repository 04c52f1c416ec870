"""Chains of stages for tests: tiny models in folders, and engines whose later stages are threads of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelinejob.serving.chunks import PassCost
from pipelinejob.serving.passes import Sampling
from pipelinejob.serving.scheduler import Answer, Ending, Limits, Scheduler
from pipelinejob.spec.job import Model
from pipelinejob_trainer.process.config import Address
from pipelinejob_trainer.serving.engine import Engine, Failed
from pipelinejob_trainer.serving.later_stage import LaterStage
from pipelinejob_trainer.serving.meter import LONGEST_PASS_S, Meter
from pipelinejob_trainer.serving.stage_model import load_stage

HANG_S = 180.0
BLOCK = 4
COST = PassCost(fixed_s=0.01, token_s=0.001)

TINY: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 128},
    "qwen3": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6, "head_dim": 8},
    "bloom": {"n_layer": 4, "n_head": 2},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "gpt_neox": {},
    "falcon": {"alibi": True, "new_decoder_architecture": False},
}
_SIZES = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_folder(family: str, to: Path, **sizes: Any) -> tuple[Path, Any]:
    """Write a random model of a family; return its folder and the model. Weights are large enough to have opinions."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[family](**_SIZES | TINY.get(family, {}) | sizes)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn_like(each), alpha=0.15)
    model.save_pretrained(to)
    return to, model


def spec_of(folder: Path, *, blocks: int = 4) -> Model:
    return Model.model_validate({"huggingFace": {"path": str(folder)}, "numLayers": blocks + 2})


def cuts(layers: int, stages: int) -> list[tuple[int, int]]:
    borders = [layers * stage // stages for stage in range(stages + 1)]
    return list(pairwise(borders))


@dataclass
class Told:
    """What an engine said of one answer."""

    tokens: list[int] = field(default_factory=list)
    sampled: list[Any] = field(default_factory=list)
    ending: Ending | None = None
    failed: str = ""
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, said: Any) -> None:
        if isinstance(said, Failed):
            self.failed = said.reason
            self.done.set()
            return
        self.tokens.append(said.sampled.token)
        self.sampled.append(said.sampled)
        if said.ending is not None:
            self.ending = said.ending
            self.done.set()


class Served:
    """An engine, and the threads of its later stages, which can be ended and begun again."""

    def __init__(self, engine: Engine, computes: Sequence[Any], *, begins: bool = True) -> None:
        self.engine = engine
        self._computes = computes
        self._stops: dict[int, tuple[threading.Event, threading.Thread]] = {}
        self._number = 0
        self.answering: Any = None
        self.front: Any = None
        for stage in range(1, len(computes)) if begins else ():
            self.begin(stage)

    def begin(self, stage: int, compute: Any = None) -> None:
        stop = threading.Event()
        later = LaterStage(
            stage=stage,
            front=Address(host="127.0.0.1", port=self.engine.port),
            compute=compute or self._computes[stage],
            meter=Meter(),
            cost=COST,
        )
        thread = threading.Thread(target=later.serve, args=(stop,), daemon=True)
        thread.start()
        self._stops[stage] = (stop, thread)

    def end(self, stage: int) -> None:
        """Let a stage leave, for good."""
        stop, thread = self._stops[stage]
        stop.set()
        self.engine._chain._members[stage].connection.shutdown(socket.SHUT_RDWR)
        thread.join(HANG_S)

    def submit(self, prompt: Sequence[int], max_new: int, **given: Any) -> Told:
        told: Told = given.pop("told", None) or Told()
        self._number += 1
        ends = given.pop("ends", frozenset())
        client = given.pop("client", "")
        sampling = Sampling(**{"temperature": 0.0} | given)
        answer = Answer(
            number=self._number, client=client, prompt=tuple(prompt), max_new=max_new, sampling=sampling, ends=ends
        )
        self.engine.submit(answer, told)
        return told

    def close(self) -> None:
        for stop, _ in self._stops.values():
            stop.set()
        self.engine.close()
        for _, thread in self._stops.values():
            thread.join(HANG_S)


@contextmanager
def serving(
    computes: Sequence[Any],
    *,
    weights: str = "",
    begins: bool = True,
    longest_pass_s: float = LONGEST_PASS_S,
    **limits: int,
) -> Iterator[Served]:
    """Serve with these stages."""
    given = {"groups": len(computes) + 1, "group_size": 4, "chunk_tokens": 5, "block": BLOCK, "num_blocks": 64}
    scheduler = Scheduler(Limits(**given | {"max_waiting": 1000} | limits))
    engine = Engine(
        scheduler,
        computes[0],
        num_stages=len(computes),
        port=0,
        cost=COST,
        silence_s=HANG_S,
        weights=weights,
        longest_pass_s=longest_pass_s,
    )
    engine.start()
    served = Served(engine, computes, begins=begins)
    try:
        yield served
    finally:
        served.close()


def stages_of(folder: Path, stages: int, *, blocks: int = 4, num_blocks: int = 64) -> list[Any]:
    model = spec_of(folder, blocks=blocks)
    return [
        load_stage(model, stretch, num_blocks=num_blocks, block=BLOCK).forward for stretch in cuts(blocks + 2, stages)
    ]
