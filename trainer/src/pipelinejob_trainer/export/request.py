"""What is to be exported."""

from dataclasses import dataclass
from pathlib import Path

import torch

SHARD_BYTES = 5_000_000_000  # as transformers cuts its files


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checkpoint's folder, or that of all checkpoints, of which the newest intact one is taken.

    Tensors are written in `dtype`, into files of at most `shard_bytes`, or of one tensor.
    """

    checkpoint: Path
    to: Path
    adapters_only: bool = False
    dtype: torch.dtype = torch.float32
    shard_bytes: int = SHARD_BYTES
