"""The one way in: a config, and which layers are wanted of its model."""

import json
from typing import Any

from pipelinejob_trainer.models.huggingface.check import Checked, check
from pipelinejob_trainer.models.huggingface.cut import Cut, cut

_checked: dict[str, Checked] = {}


def checked(config: Any, *, trust_remote_code: bool = False) -> Checked:
    """Check the cut of a model of this config, once in a process.

    Raises UserError with the reason where it cannot be cut.
    """
    ways = (getattr(config, "_attn_implementation", None), config.name_or_path, trust_remote_code)
    key = json.dumps([config.to_dict(), ways], sort_keys=True, default=str)
    if key not in _checked:
        _checked[key] = check(config, trust_remote_code=trust_remote_code)
    return _checked[key]


def build(config: Any, first: int, end: int, *, trust_remote_code: bool = False) -> Cut:
    """Make the model of a `PretrainedConfig` on the meta device, to fill its layers [first, end).

    The result's `layers[index]` is a layer's module, whose tensors `materialise(cut, index)` gives
    memory; `names` maps their names to transformers' and back; `tied` maps tied places to the
    first one's name. Raises UserError with the reason where the model cannot be cut.
    """
    anatomy = checked(config, trust_remote_code=trust_remote_code).anatomy
    return cut(config, range(first, end), anatomy, trust_remote_code=trust_remote_code)
