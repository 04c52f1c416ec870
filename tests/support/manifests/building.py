"""A good manifest, and manifests that differ from it in a field or two."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

ABSENT = object()
LONG_NAME = "a" * 52
GPU = {"spec.device": "gpu"}
_GOOD = {
    "apiVersion": "pipelinejob.io/v1alpha1",
    "kind": "PipelineJob",
    "metadata": {"name": "good", "namespace": "default"},
    "spec": {
        "model": {"gpt": {"numLayers": 8, "hiddenSize": 128, "numHeads": 4}},
        "data": {"corpus": "python-stdlib", "sequenceLength": 128},
        "parallelism": {"pipeline": 4},
        "schedule": {"name": "1F1B", "microBatches": 8, "microBatchSize": 4},
        "training": {"steps": 300, "learningRate": 0.003, "warmupSteps": 20},
        "device": "cpu",
    },
}
OWN_MODEL = {"gpt": ABSENT, "entrypoint": "mymodel.layers:build", "numLayers": 6}
HUGGING_FACE = {"gpt": ABSENT, "huggingFace": {"path": "/models/llama"}, "numLayers": 6}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 256,
}


def decoder(**sizes: Any) -> dict[str, Any]:
    """Change the model to a built-in decoder of these sizes and some."""
    least = {"numLayers": 8, "hiddenSize": 64, "numHeads": 4, "feedForwardSize": 128}
    return {"spec.model": {"decoder": least | sizes}}


def manifest(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a good manifest with `changes` by dotted path; ABSENT takes a field away."""
    made: dict[str, Any] = copy.deepcopy(_GOOD)
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        at = made
        for parent in parents:
            at = at.setdefault(parent, {})
        if value is ABSENT:
            at.pop(last, None)
        else:
            at[last] = copy.deepcopy(value)
    return made


def with_value(path: str, value: Any) -> dict[str, Any]:
    """Return a good manifest with `value` in the field that a schema calls `path` (`spec.data.tokens[].weight`)."""
    made = manifest()
    *parents, last = path.split(".")
    at = made
    for parent in parents:
        name = parent.removesuffix("[]")
        if not isinstance(at.get(name), list if parent.endswith("[]") else dict):
            at[name] = [{}] if parent.endswith("[]") else {}
        at = at[name][0] if parent.endswith("[]") else at[name]
    at[last.removesuffix("[]")] = [value] if last.endswith("[]") else value
    return made


def fields(path: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return every field of a schema by its path; the items of a list or map are `path[]`."""
    for name, each in schema.get("properties", {}).items():
        yield f"{path}.{name}", each
        yield from fields(f"{path}.{name}", each)
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            yield f"{path}[]", schema[inner]
            yield from fields(f"{path}[]", schema[inner])


def values() -> st.SearchStrategy[Any]:
    """Return whatever JSON can hold."""
    numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 300) | st.floats(allow_nan=False, allow_infinity=False)
    words = st.sampled_from(["1F1B", "cpu", "a:b", "node", "a/../b", "nvidia.com/gpu", "auto", "3"]) | st.text(
        max_size=8
    )
    return st.recursive(
        st.none() | st.booleans() | numbers | words,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )


def own_model(**changes: Any) -> dict[str, Any]:
    """Return the changes that put a user's own model in the place of the built-in one."""
    return {f"spec.model.{key}": value for key, value in {**OWN_MODEL, **changes}.items()}


def hugging_face(**changes: Any) -> dict[str, Any]:
    """Return the changes that put a Hugging Face model in the place of the built-in one."""
    return {f"spec.model.{key}": value for key, value in {**HUGGING_FACE, **changes}.items()}


def trainer(**fields: Any) -> dict[str, Any]:
    """Return a pod template with a trainer container of these fields."""
    return {"spec": {"containers": [{"name": "trainer", **fields}]}}


def custom(actions: str, **changes: Any) -> dict[str, Any]:
    """Return the changes that put a schedule of one's own, of two micro-batches on two stages, in the place of 1F1B."""
    schedule = {"name": "custom", "microBatches": 2, "microBatchSize": 4, "actions": actions}
    return {"spec.parallelism.pipeline": 2, "spec.schedule": schedule} | changes
