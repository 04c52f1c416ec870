"""Prepared tokens for tests: a tokenizer trained here, documents of Python's documentation, work in processes."""

import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipelinejob_trainer.base.errors import UserError
from pipelinejob_trainer.data.prepare import inputs
from pipelinejob_trainer.data.prepare.prepare import Request, prepare
from pipelinejob_trainer.data.tokens.folder import TokenFolder
from support.local.forkserver import forking_context

END = "<|end|>"
CHAT = [
    {"role": "user", "content": "Say one."},
    {"role": "assistant", "content": "One."},
    {"role": "user", "content": "And two?"},
    {"role": "assistant", "content": "Two it is."},
]
CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
FORGETFUL = (  # earlier answers are left out, as templates do with what was thought
    "{% for m in messages %}{% if m['role'] != 'assistant' or loop.last %}"
    "{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def tokenizer_folder(folder: Path, *, template: str | None = CHATML, size: int = 2000) -> Path:
    """Write a tokenizer as transformers saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_trained(size), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@cache
def _trained(size: int) -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END, "<|start|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts(12), trainer)
    text: str = bpe.to_str()
    return text


def texts(count: int) -> list[str]:
    """Return the first topics of Python's documentation."""
    return [text for _, text in sorted(topics.items())[:count]]


def write_lines(file: Path, values: Iterable[object], *, column: str = "text") -> Path:
    """Write a jsonl file, one value a line."""
    file.write_text("".join(json.dumps({column: value}) + "\n" for value in values), encoding="utf-8")
    return file


def write_data_set(folder: Path, given_texts: Sequence[str], *, rows_of_batch: int) -> None:
    """Write what `datasets` does: streams that state.json names, and beside them one that it kept of other work."""
    table, names = pa.table({"id": range(len(given_texts)), "text": given_texts}), ["data-00000-of-00001.arrow"]
    for name in (*names, "cache-123.arrow"):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table, max_chunksize=rows_of_batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def prepared(
    target: Path, tokenizer: Path, values: Iterable[object], *, column: str = "text", **options: Any
) -> TokenFolder:
    """Prepare values in this process, and open what came of them."""
    source = write_lines(target.with_name(f"{target.name}.jsonl"), values, column=column)
    prepare(Request(sources=(str(source),), tokenizer=tokenizer, target=target, **{"workers": 1, **options}))
    return TokenFolder(target, field="test")


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def in_process(request: Request, *, dies_after: int | None = None, largest_file: int | None = None) -> Any:
    """Start preparing in a process of its own, in small pieces.

    `dies_after`: it is killed when it touches a file for that many times; `largest_file` in bytes.
    """
    process = forking_context().Process(target=_prepare, args=(request, dies_after, largest_file))
    process.start()
    return process


def _prepare(request: Request, dies_after: int | None, largest_file: int | None) -> None:
    inputs._SMALLEST_PIECE = 2**13
    if dies_after is not None:
        _die_after(dies_after, str(request.target))
    if largest_file is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        prepare(request)
    except UserError as error:
        (request.target.parent / f"{request.target.name}.error").write_text(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _die_after(count: int, below: str) -> None:
    touched = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal touched
        if event in {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"} and str(arguments[0]).startswith(below):
            touched += 1
            if touched == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
