"""What a stage holds while it reads its part of a Hugging Face folder: little more than that part."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.training.hugging_face_folders import LLAMA
from support.training.saved_models import in_pieces

_PEAK = """
import resource, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from support.training.hugging_face_folders import room_for, weights_of

torch.set_num_threads(1)
mine = [f".layers.{block}." for block in (1, 2)]
weights, model = weights_of(Path(sys.argv[2]), blocks=int(sys.argv[3]))
wanted = {name: each for name, each in model.state_dict().items() if any(part in name for part in mine)}
share = sum(each.numel() * 4 for each in wanted.values())
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak counts from here
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = peak()
found = {name: torch.empty(each.shape) for name, each in wanted.items()}
weights.fill(found)
print((peak() - before) / share)
assert all(bool(each.isfinite().all()) for each in found.values())
"""


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("llama", {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8}),
        ("mixtral", {"hidden_size": 512, "intermediate_size": 1024, "num_local_experts": 16}),
    ],
)
def test_a_stage_never_holds_much_more_than_its_share(tmp_path: Path, kind: str, sizes: Mapping[str, int]) -> None:
    """Two blocks of six, shaped as those of a model of billions, written in pieces here."""
    blocks = 6
    in_pieces(tmp_path, kind, LLAMA | sizes | {"num_hidden_layers": blocks, "vocab_size": 32000})

    command = [sys.executable, "-c", _PEAK, str(Path(__file__).parents[2]), str(tmp_path), str(blocks)]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.9 < ratio < 1.1
