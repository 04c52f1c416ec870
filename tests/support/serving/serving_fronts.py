"""A front on a port of this machine, for tests: a tiny model of bytes, and uvicorn in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from pipelinejob_trainer.serving.front.answering import Answering
from pipelinejob_trainer.serving.front.app import Front
from pipelinejob_trainer.serving.front.metrics import Metrics
from pipelinejob_trainer.serving.front.text import FolderTokenizer
from support.serving.serving_chains import HANG_S, Served, serving

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'odd' %}{{ raise_exception('no odd roles') }}{% endif %}"
    "{{ m.role }}:{{ m.content }};{% endfor %}{% if tools %}tools:{{ tools | length }};{% endif %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def write_tokenizer(to: Path) -> None:
    """Write a tokenizer whose tokens are bytes, but for 0, which ends a text."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Fast(models.BPE(vocab={"<end>": 0} | {each: place for place, each in enumerate(alphabet, 1)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>")
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(to)


@contextmanager
def front(
    stages: list[Any], folder: Path, *, keys: tuple[str, ...] = (), **limits: int
) -> Iterator[tuple[str, Served]]:
    """Serve over HTTP; return the address, and what serves."""
    with serving(stages, **limits) as served:
        engine = served.engine
        answering = Answering(
            engine,
            FolderTokenizer(folder),
            engine.limits,
            Metrics(engine, namespace="default", job="tiny"),
            model="tiny",
            positions=128,
            timeout_s=HANG_S,
        )
        served.front = Front(answering, keys=keys)
        server = uvicorn.Server(uvicorn.Config(served.front.app(), host="127.0.0.1", port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        served.answering = answering
        while not (server.started and engine.is_ready):
            threading.Event().wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}", served
        finally:
            server.should_exit = True
            thread.join(HANG_S)
