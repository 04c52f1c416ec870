"""Bad manifests, each with the path and the words its author must be shown; one table for command line and API server."""
# ruff: noqa: E501  # a table reads best with a case a line

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

ABSENT = object()
LONG_NAME = "a" * 52

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
    """Return a good manifest with `value` in the field that a schema calls `path` (`spec.failurePolicy.rules[].action`)."""
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


@dataclass(frozen=True)
class Bad:
    """A good manifest, changed; the first error's `path`, and `words` that its sentence holds."""

    claim: str
    changes: Mapping[str, Any]
    path: str
    words: str
    others: tuple[str, ...] = field(default=())  # further paths that are rightly complained about


_ASYNCHRONOUS = {"spec.schedule.name": "PipeDream", "spec.training.clipNorm": 0}

# The API server sees these too, and says the same word for word.
RULES = [
    Bad("no model", {"spec.model": {}}, "spec.model", "nor entrypoint nor huggingFace is given"),
    Bad("two models", {"spec.model.entrypoint": "a:b"}, "spec.model", "both given; keep one", ("spec.model.numLayers",)),
    Bad("entrypoint without length", own_model(numLayers=ABSENT), "spec.model.numLayers", "compulsory with entrypoint"),
    Bad("length beside gpt", {"spec.model.numLayers": 8}, "spec.model.numLayers", "goes with entrypoint or huggingFace only"),
    Bad("arguments beside gpt", {"spec.model.arguments": {"a": "b"}}, "spec.model.arguments", "with entrypoint only"),
    Bad("sizes of layers beside gpt", {"spec.model.config": {"model_type": "llama"}}, "spec.model.config", "with entrypoint or huggingFace only"),
    Bad("a folder beside gpt", hugging_face(gpt={"numLayers": 4, "hiddenSize": 64, "numHeads": 4}), "spec.model", "gpt and huggingFace are both given"),
    Bad("a folder beside an entrypoint", hugging_face(entrypoint="a:b"), "spec.model", "entrypoint and huggingFace are both given"),
    Bad("a folder without length", hugging_face(numLayers=ABSENT), "spec.model.numLayers", "compulsory with huggingFace"),
    Bad("a folder's blocks without embedding and head", hugging_face(numLayers=2), "spec.model.numLayers", "2 layers cannot be embedding, blocks and head",
        ("spec.parallelism.pipeline",)),
    Bad("arguments beside a folder", hugging_face(arguments={"a": "b"}), "spec.model.arguments", "a Hugging Face model from its folder"),
    Bad("a hub's name for a folder", hugging_face(huggingFace={"path": "meta/llama"}), "spec.model.huggingFace.path", '"meta/llama" is no path of a folder'),
    Bad("a hub's address for a folder", hugging_face(huggingFace={"path": "hf://meta/llama"}), "spec.model.huggingFace.path", "hf download NAME"),
    Bad("entrypoint is a file", own_model(entrypoint="mymodel/layers.py"), "spec.model.entrypoint", "no entrypoint"),
    Bad("entrypoint without function", own_model(entrypoint="mymodel"), "spec.model.entrypoint", "package.module:function"),
    Bad("entrypoint with two colons", own_model(entrypoint="a:b:c"), "spec.model.entrypoint", '"a:b:c" is no entrypoint'),
    Bad("entrypoint with a trailing newline", own_model(entrypoint="a:b\n"), "spec.model.entrypoint", "must be package.module:function"),
    Bad("entrypoint with an umlaut", own_model(entrypoint="a:bä"), "spec.model.entrypoint", "is no entrypoint"),
    Bad("heads do not divide width", {"spec.model.gpt.numHeads": 3}, "spec.model.gpt.hiddenSize", "128 cannot be cut into 3"),
    Bad("heads of a decoder that do not divide its width", decoder(numHeads=3), "spec.model.decoder.hiddenSize", "64 cannot be cut into 3 equal heads; use a multiple of 3, or give headSize"),
    Bad("heads that cannot be turned", decoder(headSize=15), "spec.model.decoder.headSize", "heads of 15 are odd"),
    Bad("heads that cannot be turned, unsaid", decoder(hiddenSize=68), "spec.model.decoder.headSize", "heads of 17 are odd"),
    Bad("groups that are not equal", decoder(numKeyValueHeads=3), "spec.model.decoder.numKeyValueHeads", "4 heads cannot share 3 keys and values equally"),
    Bad("a decoder's vocabulary below a byte", decoder(vocabularySize=100), "spec.model.decoder.vocabularySize", "use 256 or more"),
    Bad("more experts than there are", decoder(experts={"num": 4, "perToken": 5}), "spec.model.decoder.experts.perToken", "a token cannot meet 5 of 4 experts; use at most 4"),
    Bad("experts of an odd width", decoder(feedForwardSize=100, experts={"num": 4}), "spec.model.decoder.feedForwardSize", "100 is no multiple of 8"),
    Bad("scaling that fades in backwards", decoder(ropeScaling={"kind": "llama3", "factor": 8, "lowFrequencyFactor": 4}), "spec.model.decoder.ropeScaling.lowFrequencyFactor", "must be less than highFrequencyFactor"),
    Bad("a decoder's tied weights that drift apart", _ASYNCHRONOUS | decoder(tieEmbeddings=True), "spec.model.decoder.tieEmbeddings",
        "their two copies would drift apart"),
    Bad("two families", {"spec.model.decoder": {"numLayers": 8, "hiddenSize": 64, "numHeads": 4, "feedForwardSize": 128}}, "spec.model", "gpt and decoder are both given"),
    Bad("vocabulary below a byte", {"spec.model.gpt.vocabularySize": 100}, "spec.model.gpt.vocabularySize", "use 256 or more"),
    Bad("no data", {"spec.data": {}}, "spec.data", "neither corpus nor paths"),
    Bad("bytes and tokens", {"spec.data": {"paths": ["a"], "tokens": [{"path": "b"}]}}, "spec.data", "paths and tokens are both given"),
    Bad("packing of bytes", {"spec.data.packing": "Padded"}, "spec.data.packing", "packing goes with tokens only"),
    Bad("documents that gpt cannot keep apart", {"spec.data": {"tokens": [{"path": "a"}], "packing": "Documents"}}, "spec.data.packing", "use Concatenate, or Padded"),
    Bad("tokens to evaluate bytes on", {"spec.evaluation": {"intervalSteps": 1, "tokens": [{"path": "a"}]}}, "spec.evaluation.tokens", "goes with data.tokens only"),
    Bad("bytes to evaluate tokens on", {"spec.data": {"tokens": [{"path": "a"}]}, "spec.evaluation": {"intervalSteps": 1, "paths": ["a"]}}, "spec.evaluation.paths", "use evaluation.tokens"),
    Bad("corpus and paths", {"spec.data.paths": ["/data/*.txt"]}, "spec.data", "both given"),
    Bad("more stages than layers", {"spec.parallelism.pipeline": 11}, "spec.parallelism.pipeline",
        "11 stages cannot share 10 layers; use at most 10"),
    Bad("more stages than own layers", own_model() | {"spec.parallelism.pipeline": 7}, "spec.parallelism.pipeline",
        "7 stages cannot share 6 layers; use at most 6"),
    Bad("no stage count", {"spec.parallelism": {}}, "spec.parallelism.pipeline", "pipeline is compulsory without gpus"),
    Bad("fewer GPUs than the degrees take", {"spec.parallelism": {"gpus": 7, "pipeline": 4, "data": 2}}, "spec.parallelism.gpus",
        "7 GPUs are too few for the degrees given, which take 8 at least"),
    Bad("no number of micro-batches", {"spec.schedule": {"name": "1F1B"}}, "spec.schedule.microBatches", "compulsory without batchSize or globalBatchSize"),
    Bad("two batch sizes", {"spec.schedule": {"batchSize": 8, "globalBatchSize": 8}}, "spec.schedule.globalBatchSize", "both given; keep one"),
    Bad("nothing left to choose for a batch", {"spec.schedule.globalBatchSize": 32}, "spec.schedule.globalBatchSize",
        "leave out microBatches, microBatchSize, or this"),
    Bad("a batch of each of an open number of replicas", {"spec.parallelism": {"gpus": 8}, "spec.schedule": {"batchSize": 8}}, "spec.schedule.batchSize",
        "how many replicas there are is open; use globalBatchSize"),
    Bad("replicas to choose and no batch", {"spec.parallelism": {"gpus": 8}}, "spec.schedule.globalBatchSize", "compulsory where the number of replicas is chosen"),
    Bad("a batch that replicas cannot share", {"spec.parallelism.data": 3, "spec.schedule": {"globalBatchSize": 32}}, "spec.schedule.globalBatchSize",
        "32 sequences cannot be shared equally by 3 replicas; use a multiple of 3"),
    Bad("a partition for an open number of stages", {"spec.parallelism": {"gpus": 4, "data": 1}, "spec.partition.layers": [5, 5]}, "spec.parallelism.pipeline",
        "compulsory beside what speaks of single stages"),
    Bad("custom for an open number of micro-batches", {"spec.schedule": {"name": "custom", "batchSize": 8, "actions": "F0 B0"}}, "spec.schedule.microBatches",
        "compulsory with custom"),
    Bad("more pods than a job may have", {"spec.model.gpt.numLayers": 1000, "spec.parallelism": {"pipeline": 64, "data": 33}},
        "spec.parallelism", "64 stages times 33 replicas"),
    Bad("partition for other stages", {"spec.partition.layers": [5, 5]}, "spec.partition.layers", "2 entries for 4 stages"),
    Bad("partition sum too small", {"spec.partition.layers": [2, 2, 2, 2]}, "spec.partition.layers", "add up to 8, the model has 10"),
    Bad("partition sum of own model", own_model() | {"spec.partition.layers": [2, 2, 2, 2]}, "spec.partition.layers",
        "add up to 8, the model has 6"),
    Bad("warm-up beyond the end", {"spec.training.warmupSteps": 301}, "spec.training.warmupSteps", "do not fit into 300 steps"),
    Bad("decay beyond the end", {"spec.training.decay": {"kind": "WSD", "decaySteps": 290}}, "spec.training.decay.decaySteps",
        "290 steps of decay do not fit into the 280 after the warm-up; use at most 280"),
    Bad("decay of a constant rate", {"spec.training.decay": {"kind": "Constant", "decaySteps": 2}}, "spec.training.decay.decaySteps",
        "goes with Cosine, Linear and WSD"),
    Bad("settings of another optimizer", {"spec.training.muon": {"steps": 4}}, "spec.training.muon", "goes with optimizer Muon"),
    Bad("settings of SGD beside AdamW", {"spec.training.sgd": {"momentum": 0.9}}, "spec.training.sgd", "goes with optimizer SGD"),
    Bad("settings of AdamW beside SGD", {"spec.training.optimizer": "SGD", "spec.training.adamW": {"beta2": 0.9}}, "spec.training.adamW",
        "goes with optimizer AdamW or Muon"),
    Bad("settings of Adafactor beside AdamW", {"spec.training.adafactor": {}}, "spec.training.adafactor", "goes with optimizer Adafactor"),
    Bad("nesterov without momentum", {"spec.training.optimizer": "SGD", "spec.training.sgd": {"nesterov": True}}, "spec.training.sgd.nesterov",
        "nesterov needs momentum"),
    Bad("a group that changes nothing", {"spec.training.groups": [{"match": "*"}]}, "spec.training.groups[0]", "a group changes something"),
    Bad("a group that is frozen and not", {"spec.training.groups": [{"match": "*", "frozen": True, "weightDecay": 0.1}]},
        "spec.training.groups[0].frozen", "frozen parameters have neither"),
    Bad("a tracker that is no function", {"spec.training.tracking": {"tracker": "wandb"}}, "spec.training.tracking.tracker",
        '"wandb" is no function; write package.module:function'),
    Bad("curves outside the run", {"spec.training.tracking": {"tensorBoard": {"path": "/logs"}}}, "spec.training.tracking.tensorBoard.path",
        "leads out of the folder of the run"),
    Bad("skipping what has been done", _ASYNCHRONOUS | {"spec.training.onNotFinite": "Skip"}, "spec.training.onNotFinite",
        "PipeDream has updated by the time"),
    Bad("checkpoint outside the volume", {"spec.checkpoint.path": "../other"}, "spec.checkpoint.path", "leads out of the volume"),
    Bad("checkpoint outside by a detour", {"spec.checkpoint.path": "a/../../b"}, "spec.checkpoint.path", "leads out"),
    Bad("absolute checkpoint path", {"spec.checkpoint.path": "/data"}, "spec.checkpoint.path", "without leading /"),
    Bad("changed stage does not exist", {"spec.stageTemplates": [{"stage": 4, "template": {}}]}, "spec.stageTemplates",
        "the stages are 0 to 3"),
    Bad("preferred equals required", {"spec.topology.pipeline": {"required": "rack", "preferred": "rack"}},
        "spec.topology.pipeline.preferred", "must differ from required"),
    Bad("a priority class that no PriorityClass can be called", {"spec.scheduling": {"priorityClassName": "High_Prio"}}, "spec.scheduling.priorityClassName", '"High_Prio" cannot name a PriorityClass'),
    Bad("a level is required of another scheduler", {"spec.topology.pipeline": {"required": "rack"}, "spec.scheduling": {"binding": "Late"}},
        "spec.topology.pipeline.required", "the cluster's scheduler chooses nodes, so no level can be required"),
    Bad("required level is not listed", {"spec.topology": {"levels": ["zone"], "pipeline": {"required": "rack"}}},
        "spec.topology.pipeline.required", '"rack" is not among levels'),
    Bad("preferred level is not listed", {"spec.topology": {"levels": ["zone"], "pipeline": {"preferred": "rack"}}},
        "spec.topology.pipeline.preferred", '"rack" is not among levels'),
    Bad("a level twice", {"spec.topology.levels": ["zone", "zone"]}, "spec.topology.levels", "stands here twice"),
    Bad("a level that is no label key", {"spec.topology.levels": ["my rack"]}, "spec.topology.levels", "node label key"),
    Bad("GPU resource without a domain", {"spec.gpuResource": "gpu"}, "spec.gpuResource", '"gpu" is no extended resource'),
    Bad("name too long for pods", {"metadata.name": LONG_NAME}, "metadata.name", "at most 51 characters"),
    Bad("name begins with a digit", {"metadata.name": "1st"}, "metadata.name", '"1st" cannot name pods'),
    Bad("name with dots", {"metadata.name": "my.job"}, "metadata.name", '"my.job" cannot name pods'),
    Bad("a schedule that trains nothing", {"spec.schedule.name": "ForwardOnly"}, "spec.schedule.name", "has no backward pass and trains nothing; use 1F1B"),
    Bad("virtual stages with 1F1B", {"spec.schedule.virtualStages": 2}, "spec.schedule.virtualStages",
        "1F1B has its own number of virtual stages; leave this out, or use Interleaved1F1B"),
    Bad("half a wave", {"spec.parallelism.pipeline": 2, "spec.schedule": {"name": "Hanayo", "microBatches": 8, "virtualStages": 3}},
        "spec.schedule.virtualStages", "3 is odd, but a wave of Hanayo goes down the stages and up again"),
    Bad("more virtual stages than layers", {"spec.schedule": {"name": "Interleaved1F1B", "microBatches": 8, "virtualStages": 3}}, "spec.schedule",
        "Interleaved1F1B gives 4 stages 3 stretches of layers each, which 10 layers cannot fill; use at most 3 stages"),
    Bad("a V with a layer too few", {"spec.schedule.name": "ZB-V", "spec.parallelism.pipeline": 6}, "spec.schedule",
        "ZB-V gives 6 stages 2 stretches of layers each, which 10 layers cannot fill; use at most 5 stages"),
    Bad("a partition of a V by stages", {"spec.schedule.name": "ZB-V", "spec.partition.layers": [2, 2, 2, 4]}, "spec.partition.layers",
        "4 entries for 4 stages times 2 stretches of layers each; give one for each"),
    Bad("a partition that no route of auto has", {"spec.schedule.name": "auto", "spec.partition.layers": [2, 2, 2, 2, 2]}, "spec.partition.layers",
        "5 entries are no multiple of 4 stages"),
    Bad("both ends of three stages", {"spec.schedule.name": "DualPipe", "spec.parallelism.pipeline": 3}, "spec.parallelism.pipeline",
        "DualPipe runs from both ends and needs an even number of stages, not 3"),
    Bad("a batch that leaves a micro-batch empty", {"spec.schedule.batchSize": 28}, "spec.schedule.batchSize",
        "28 sequences do not make 8 micro-batches of at most 4; use 29 to 32"),
    Bad("a batch that is too large", {"spec.schedule.batchSize": 33}, "spec.schedule.batchSize", "use 29 to 32, or leave it out"),
    Bad("an asynchronous update of unequal micro-batches", {"spec.schedule": {"name": "PipeDream", "microBatches": 8, "microBatchSize": 4, "batchSize": 30}, "spec.training.clipNorm": 0},
        "spec.schedule.batchSize", "goes with synchronous schedules only"),
    Bad("custom without actions", {"spec.schedule.name": "custom"}, "spec.schedule.actions", "actions is compulsory with custom"),
    Bad("actions beside a name", {"spec.schedule.actions": "F0 B0"}, "spec.schedule.actions", "actions goes with custom only"),
    Bad("a cap that nothing heeds", {"spec.schedule.memoryCap": [4]}, "spec.schedule.memoryCap", "1F1B holds what it holds, whatever the cap"),
    Bad("a cap for too few stages", {"spec.schedule": {"name": "auto", "microBatches": 8, "memoryCap": [4, 4]}}, "spec.schedule.memoryCap",
        "2 entries for 4 stages; give one for all, or one for each"),
    Bad("an interval between updates that are not there", {"spec.schedule.updateInterval": 8}, "spec.schedule.updateInterval",
        "goes with the asynchronous PipeDream and PipeDream-2BW only"),
    Bad("PipeDream with few updates", _ASYNCHRONOUS | {"spec.schedule.updateInterval": 8}, "spec.schedule.updateInterval",
        "PipeDream updates after every micro-batch; leave updateInterval out"),
    Bad("an update larger than a step", _ASYNCHRONOUS | {"spec.schedule.name": "PipeDream-2BW", "spec.schedule.updateInterval": 9}, "spec.schedule.updateInterval",
        "9 micro-batches to an update are more than the 8 of a step; use at most 8", ("spec.schedule",)),
    Bad("an update smaller than the pipeline", _ASYNCHRONOUS | {"spec.schedule.name": "PipeDream-2BW", "spec.schedule.updateInterval": 3}, "spec.schedule",
        "an update of 3 micro-batches must gather at least as many as the 4 stages, and at most the 8 of a step"),
    Bad("vertical sync of what is in step", {"spec.schedule.verticalSync": True}, "spec.schedule.verticalSync", "all stages use the same weights anyhow"),
    Bad("recomputing stages without recomputation", {"spec.schedule.recomputeStages": [0]}, "spec.schedule.recomputeStages", "narrows recompute, which is not set"),
    Bad("a recomputing stage that is not there", {"spec.schedule.recompute": True, "spec.schedule.recomputeStages": [4]}, "spec.schedule.recomputeStages",
        "the stages are 0 to 3"),
    Bad("clipping without a global norm", _ASYNCHRONOUS | {"spec.training.clipNorm": 1}, "spec.training.clipNorm",
        "PipeDream has no moment at which the gradients of all stages"),
    Bad("tied weights that drift apart", _ASYNCHRONOUS | {"spec.model.gpt.tieEmbeddings": True}, "spec.model.gpt.tieEmbeddings",
        "their two copies would drift apart"),
    Bad("a schedule too long to list", {"spec.model.gpt.numLayers": 64, "spec.parallelism.pipeline": 64, "spec.schedule.microBatches": 32769}, "spec.schedule.microBatches",
        "32769 micro-batches on 64 stages are more than a schedule of 2097152 can list"),
]  # fmt: skip

# The API server refuses these too, in its own words.
FIELDS = [
    Bad("no folder", hugging_face(huggingFace={"weights": "Load"}), "spec.model.huggingFace.path", "is missing"),
    Bad("weights in words of its own", hugging_face(huggingFace={"path": "/m", "weights": "pretrained"}), "spec.model.huggingFace.weights", "Load"),
    Bad("an objective that does not exist", {"spec.topology.objective": "spread"},
        "spec.topology.objective", "chain"),
    Bad("a threshold of more than a step", {"spec.topology.threshold": 1.5}, "spec.topology.threshold", "1"),
    Bad("no spec", {"spec": ABSENT}, "spec", "is missing"),
    Bad("spec is a list", {"spec": []}, "spec", "[] is a list; it must be a mapping"),
    Bad("no training", {"spec.training": ABSENT}, "spec.training", "training is missing, which mode Train needs"),
    Bad("no schedule", {"spec.schedule": ABSENT}, "spec.schedule", "is missing"),
    Bad("no steps", {"spec.training.steps": ABSENT}, "spec.training.steps", "is missing"),
    Bad("no width of a feed-forward layer", {"spec.model": {"decoder": {"numLayers": 8, "hiddenSize": 64, "numHeads": 4}}}, "spec.model.decoder.feedForwardSize", "is missing"),
    Bad("one expert", decoder(experts={"num": 1}), "spec.model.decoder.experts.num", "use at least 2"),
    Bad("positions scaled by a way of one's own", decoder(ropeScaling={"kind": "yarn", "factor": 2}), "spec.model.decoder.ropeScaling.kind", "linear"),
    Bad("no width", {"spec.model.gpt.hiddenSize": ABSENT}, "spec.model.gpt.hiddenSize", "is missing"),
    Bad("claim without name", {"spec.checkpoint.volume": {}}, "spec.checkpoint.volume.claimName", "is missing"),
    Bad("null where a value must be", {"spec.training.steps": None}, "spec.training.steps", "is missing"),
    Bad("stages as a word", {"spec.parallelism.pipeline": "four"}, "spec.parallelism.pipeline", '"four" is a text; it must be a whole number'),
    Bad("steps as a text", {"spec.training.steps": "300"}, "spec.training.steps", '"300" is a text'),
    Bad("half a stage", {"spec.parallelism.pipeline": 2.5}, "spec.parallelism.pipeline", "2.5 is a number; it must be a whole number"),
    Bad("learning rate as a text", {"spec.training.learningRate": "3e-3"}, "spec.training.learningRate", "it must be a number"),
    Bad("suspend as a text", {"spec.suspend": "yes"}, "spec.suspend", "true or false"),
    Bad("paths as a text", {"spec.data": {"paths": "/data/a.txt"}}, "spec.data.paths", "must be a list"),
    Bad("sizes that are no object", own_model(config="llama"), "spec.model.config", "must be"),
    Bad("argument that is no text", own_model(arguments={"width": 3}), "spec.model.arguments.width", "must be a text"),
    Bad("template as a text", {"spec.template": "image"}, "spec.template", "must be a mapping"),
    Bad("no stage", {"spec.parallelism.pipeline": 0}, "spec.parallelism.pipeline", "0 is too small; use at least 1"),
    Bad("no replica", {"spec.parallelism.data": 0}, "spec.parallelism.data", "use at least 1"),
    Bad("no GPU", {"spec.parallelism.tensor": 0}, "spec.parallelism.tensor", "use at least 1"),
    Bad("too many GPUs", {"spec.parallelism.tensor": 65}, "spec.parallelism.tensor", "use at most 64"),
    Bad("all elements dropped", {"spec.model.gpt.dropout": 1}, "spec.model.gpt.dropout", "use less than 1"),
    Bad("a cap of nothing", {"spec.schedule": {"name": "auto", "microBatches": 8, "memoryCap": [0]}}, "spec.schedule.memoryCap[0]", "use more than 0"),
    Bad("an evaluation at no step", {"spec.evaluation": {"intervalSteps": 0}}, "spec.evaluation.intervalSteps", "use at least 1"),
    Bad("an evaluation at any time", {"spec.evaluation": {}}, "spec.evaluation.intervalSteps", "is missing"),
    Bad("no micro-batch", {"spec.schedule.microBatches": 0}, "spec.schedule.microBatches", "use at least 1"),
    Bad("no step", {"spec.training.steps": -1}, "spec.training.steps", "-1 is too small"),
    Bad("learning rate of nothing", {"spec.training.learningRate": 0}, "spec.training.learningRate", "use more than 0"),
    Bad("learning rate too high", {"spec.training.learningRate": 30}, "spec.training.learningRate", "use at most 10"),
    Bad("heads of nothing", {"spec.model.gpt.numHeads": 0}, "spec.model.gpt.numHeads", "use at least 1"),
    Bad("a stage without layers", {"spec.partition.layers": [5, 4, 0, 1]}, "spec.partition.layers[2]", "use at least 1"),
    Bad("exit code of success", {"spec.failurePolicy.rules": [{"action": "Fail", "onExitCodes": [0]}]},
        "spec.failurePolicy.rules[0].onExitCodes[0]", "use at least 1"),
    Bad("exit code twice", {"spec.failurePolicy.rules": [{"action": "Fail", "onExitCodes": [3, 3]}]},
        "spec.failurePolicy.rules[0].onExitCodes[1]", "3 stands here twice"),
    Bad("a stage changed twice", {"spec.stageTemplates": [{"stage": 1, "template": {}}, {"stage": 1, "template": {}}]},
        "spec.stageTemplates[1]", "stage 1 stands here twice"),
    Bad("no paths", {"spec.data": {"paths": []}}, "spec.data.paths", "0 entries are too few; use at least 1"),
    Bad("an empty path", {"spec.data": {"paths": [""]}}, "spec.data.paths[0]", "0 characters are too few"),
    Bad("no source of tokens", {"spec.data": {"tokens": []}}, "spec.data.tokens", "0 entries are too few; use at least 1"),
    Bad("a source that weighs nothing", {"spec.data": {"tokens": [{"path": "a", "weight": 0}]}}, "spec.data.tokens[0].weight", "use more than 0"),
    Bad("too many levels", {"spec.topology.levels": [f"l{n}" for n in range(9)]}, "spec.topology.levels", "9 entries are too many; use at most 8"),
    Bad("unknown schedule", {"spec.schedule.name": "ZeroBubble"}, "spec.schedule.name", '"ZeroBubble" is not among GPipe, 1F1B'),
    Bad("schedule in lower case", {"spec.schedule.name": "1f1b"}, "spec.schedule.name", "did you mean '1F1B'?"),
    Bad("unknown optimiser", {"spec.training.optimizer": "Lion"}, "spec.training.optimizer", '"Lion" is not among AdamW'),
    Bad("unknown precision", {"spec.training.precision": "fp16"}, "spec.training.precision", "did you mean"),
    Bad("unknown corpus", {"spec.data.corpus": "wikipedia"}, "spec.data.corpus", "not among python-stdlib; use one of them"),
    Bad("unknown device", {"spec.device": "tpu"}, "spec.device", "is not among gpu, cpu"),
    Bad("unknown failure action", {"spec.failurePolicy.rules": [{"action": "Retry", "onExitCodes": [3]}]},
        "spec.failurePolicy.rules[0].action", '"Retry" is not among Fail, Restart, Ignore'),
    Bad("a failure rule about nothing", {"spec.failurePolicy.rules": [{"action": "Ignore"}]},
        "spec.failurePolicy.rules[0]", "give one of the two"),
    Bad("more restarts than a window counts", {"spec.failurePolicy": {"maxRestarts": 65, "restartWindowSeconds": 3600}},
        "spec.failurePolicy.maxRestarts", "65 restarts are more than the 64"),
    Bad("spares for nobody's place", {"spec.recovery": {"spares": 1}}, "spec.recovery.spares", "needs recovery.inPlace"),
    Bad("fewest replicas of a number that is not shared", {"spec.scheduling": {"minReplicas": 1}},
        "spec.scheduling.minReplicas", "schedule.globalBatchSize"),
    Bad("misspelled section", {"spec.trainning": {}}, "spec.trainning", "no such field; did you mean 'training'?"),
    Bad("misspelled field", {"spec.schedule.microbatches": 8}, "spec.schedule.microbatches", "did you mean 'microBatches'?"),
    Bad("field on the wrong level", {"spec.steps": 300}, "spec.steps", "no such field"),
    Bad("misspelled top", {"specs": {}}, "specs", "did you mean 'spec'?"),
    Bad("misspelled metadata", {"metadata.label": {}}, "metadata.label", "did you mean 'labels'?"),
    Bad("no name", {"metadata.name": ABSENT}, "metadata.name", "is missing"),
]  # fmt: skip

# The API server refuses these before it looks at the schema, in words that name no field.
ENVELOPES = [
    Bad("label that is no text", {"metadata.labels": {"team": 7}}, "metadata.labels.team", "must be a text"),
    Bad("wrong version", {"apiVersion": "pipelinejob.io/v1"}, "apiVersion", "write apiVersion: pipelinejob.io/v1alpha1"),
    Bad("wrong kind", {"kind": "PipelineJobs"}, "kind", "write kind: PipelineJob"),
    Bad("no kind", {"kind": ABSENT}, "kind", "is missing"),
    Bad("annotation that is no text", {"metadata.annotations": {"runs": True}}, "metadata.annotations.runs", "must be a text"),
]  # fmt: skip

_GPU = {"spec.device": "gpu"}


def custom(actions: str, **changes: Any) -> dict[str, Any]:
    """Return the changes that put a schedule of one's own, of two micro-batches on two stages, in the place of 1F1B."""
    schedule = {"name": "custom", "microBatches": 2, "microBatchSize": 4, "actions": actions}
    return {"spec.parallelism.pipeline": 2, "spec.schedule": schedule} | changes


# Only the command line and the operator see these: a CRD makes no schedules, and does not look into pod templates.
UNSEEN = [
    Bad("actions that are none", custom("F0 F1 X0 B1"), "spec.schedule.actions", "line 1: 'X0' is no action; write F, B, I, W or O"),
    Bad("actions that wait for each other", custom("F0 B0 F1 B1\nF0 F1 B0 B1"), "spec.schedule.actions", "waits for ever before"),
    Bad("a backward that is missing", custom("F0 F1 B0 B1\nF0 B0 F1"), "spec.schedule.actions", "rank 1 runs B1 0 times"),
    Bad("actions of one stage for two", custom("F0 F1 B0 B1"), "spec.schedule.actions", "1 lines of actions for 2 stages; write one for each"),
    Bad("actions of a micro-batch too few", custom("F0 B0\nF0 B0"), "spec.schedule.actions", "of 1 micro-batches but microBatches is 2"),
    Bad("actions that train nothing", custom("F0 F1\nF0 F1"), "spec.schedule.actions", "only forwards, which train nothing"),
    Bad("a route longer than the model", custom("route 0 1 1 0\nF0 F1 F0.1 F1.1 B0.1 B1.1 B0 B1\nF0 F0.1 F1 F1.1 B0.1 B0 B1.1 B1") | own_model(numLayers=3),
        "spec.schedule.actions", "4 stages, which cannot share 3 layers"),
    Bad("updates within a step, and clipping", custom("F0@0 F1@0 B0@0 O1 B1@0 O2\nF0@0 B0@0 O1 F1@1 B1@1 O2"), "spec.schedule.actions", "set spec.training.clipNorm to 0"),
    Bad("a cap below what the schedule holds", {"spec.schedule": {"name": "ZB-H1", "microBatches": 8, "memoryCap": [4, 4, 4, 3]}}, "spec.schedule.memoryCap",
        "ZB-H1 holds the activations of 4 micro-batches on stage 3, more than 3; raise the cap, or use auto"),
    Bad("container of another name", {"spec.template": {"spec": {"containers": [{"name": "main"}]}}},
        "spec.template.spec.containers", "none of main is named `trainer`"),
    Bad("two trainers", {"spec.template": {"spec": {"containers": [{"name": "trainer"}, {"name": "trainer"}]}}},
        "spec.template.spec.containers[1].name", "stands here twice"),
    Bad("container without name", {"spec.template": {"spec": {"containers": [{"image": "x"}, {"name": "trainer"}]}}},
        "spec.template.spec.containers[0].name", "is missing"),
    Bad("containers as a mapping", {"spec.template": {"spec": {"containers": {"name": "trainer"}}}},
        "spec.template.spec.containers", "is no list"),
    Bad("containers on the wrong level", {"spec.template": {"containers": [{"name": "trainer"}]}},
        "spec.template.containers", "only metadata and spec"),
    Bad("reserved variable", {"spec.template": trainer(env=[{"name": "PIPELINEJOB_STAGE", "value": "1"}])},
        "spec.template.spec.containers[0].env[0].name", "are the operator's"),
    Bad("variable that is no text", {"spec.template": trainer(env=[{"name": "THREADS", "value": 2}])},
        "spec.template.spec.containers[0].env[0].value", 'put it in quotes, "2"'),
    Bad("node selector that is no text", {"spec.template": {"spec": {"nodeSelector": {"rack": 12}}}},
        "spec.template.spec.nodeSelector[rack]", 'put it in quotes, "12"'),
    Bad("node selector as a list", {"spec.template": {"spec": {"nodeSelector": ["rack"]}}},
        "spec.template.spec.nodeSelector", "no mapping of names to texts"),
    Bad("reserved port", {"spec.template": {"spec": {"containers": [{"name": "trainer"}, {"name": "side", "ports": [{"containerPort": 9400}]}]}}},
        "spec.template.spec.containers[1].ports[0].containerPort", "9400 is the trainer's metrics port"),
    Bad("reserved port name", {"spec.template": trainer(ports=[{"name": "metrics", "containerPort": 8080}])},
        "spec.template.spec.containers[0].ports[0].name", "name of a port of the trainer"),
    Bad("reserved volume", {"spec.template": {"spec": {"volumes": [{"name": "plan", "emptyDir": {}}]}}},
        "spec.template.spec.volumes[0].name", "the operator's volume"),
    Bad("mount over the plan", {"spec.template": trainer(volumeMounts=[{"name": "x", "mountPath": "/etc/pipelinejob"}])},
        "spec.template.spec.containers[0].volumeMounts[0].mountPath", "holds the plan"),
    Bad("reserved label", {"spec.template": {"metadata": {"labels": {"pipelinejob.io/stage": "1"}}}},
        "spec.template.metadata.labels[pipelinejob.io/stage]", "is the operator's"),
    Bad("restart policy", {"spec.template": {"spec": {"restartPolicy": "Always"}}},
        "spec.template.spec.restartPolicy", "stages restart together"),
    Bad("node name", {"spec.template": {"spec": {"nodeName": "node-1"}}}, "spec.template.spec.nodeName", "placed by the operator"),
    Bad("memory that is no quantity", {"spec.template": trainer(resources={"limits": {"memory": "lots"}})},
        "spec.template.spec.containers[0].resources.limits[memory]", "'lots' is no quantity"),
    Bad("other GPU count than computes", _GPU | {"spec.template": trainer(resources={"limits": {"nvidia.com/gpu": 8}})},
        "spec.template.spec.containers[0].resources.limits[nvidia.com/gpu]", "8 GPUs cannot be"),
    Bad("GPUs for a job on processors", {"spec.template": trainer(resources={"limits": {"nvidia.com/gpu": 1}})},
        "spec.template.spec.containers[0].resources.limits[nvidia.com/gpu]", "spec.device is cpu"),
    Bad("reserved variable in one stage", {"spec.stageTemplates": [{"stage": 1, "template": trainer(env=[{"name": "PIPELINEJOB_PLAN"}])}]},
        "spec.stageTemplates[0].template.spec.containers[0].env[0].name", "are the operator's"),
    Bad("heads that ranks cannot share", {"spec.parallelism.tensor": 8}, "spec.parallelism.tensor", "8 ranks cannot share 4 heads equally; use a divisor of 4, or other sizes"),
    Bad("unknown topology profile", {"spec.topology.profile": "azure-stack"}, "spec.topology.profile", 'there is no profile "azure-stack"'),
    Bad("level of another profile", {"spec.topology": {"profile": "eks", "pipeline": {"required": "rack"}}},
        "spec.topology.pipeline.required", 'no level of profile eks is called "rack"'),
    Bad("level of no profile", {"spec.topology.pipeline": {"preferred": "rak"}}, "spec.topology.pipeline.preferred", 'is called "rak"'),
    Bad("sizes without a width", own_model(config={"model_type": "llama"}), "spec.model.config.hidden_size", "is missing"),
    Bad("sizes in words", own_model(config=LLAMA | {"vocab_size": "large"}), "spec.model.config.vocab_size", "'large' is no whole number"),
    Bad("sizes of more layers", own_model(config=LLAMA | {"num_hidden_layers": 5}), "spec.model.numLayers", "5 blocks, which makes 7 layers"),
    Bad("sizes of more layers than a folder's", hugging_face(config=LLAMA | {"num_hidden_layers": 5}), "spec.model.numLayers",
        "5 blocks, which makes 7 layers with embedding and head; have both written anew"),
    Bad("argument that cannot be named", own_model(arguments={"n-heads": "3"}), "spec.model.arguments", '"n-heads" cannot name'),
]  # fmt: skip

GOOD = {
    "the least": {},
    "a user's own model": own_model(arguments={"width": "64"}),
    "a user's own model and its sizes": own_model(config=LLAMA),
    "a Hugging Face model": hugging_face(),
    "a Hugging Face model and its sizes": hugging_face(config=LLAMA),
    "a Hugging Face model beside the manifest, from nothing": hugging_face(huggingFace={"path": "./llama", "weights": "Random"}),
    "a Hugging Face model with code of its own": hugging_face(huggingFace={"path": "../llama", "trustRemoteCode": True}),
    "a decoder": decoder(),
    "a decoder with all that it can have": decoder(
        numKeyValueHeads=2, headSize=24, vocabularySize=300, tieEmbeddings=True, ropeTheta=5e5, normEpsilon=1e-6,
        ropeScaling={"kind": "llama3", "factor": 8}, attentionBias=True, headNorms=True, slidingWindow=64,
        experts={"num": 8, "perToken": 2, "normalized": False, "auxiliaryLoss": 0.02},
    ),
    "as many stages as layers": {"spec.parallelism.pipeline": 10},
    "a partition": {"spec.partition.layers": [3, 2, 2, 3]},
    "one stage": {"spec.parallelism.pipeline": 1},
    "an optimizer, its settings and groups": {"spec.training": {"steps": 300, "optimizer": "Muon", "muon": {"steps": 4}, "adamW": {"beta2": 0.99},
        "groups": [{"match": "layers.0.*", "frozen": True}, {"match": "*.bias", "learningRateScale": 2}]}},
    "a rate, a policy and trackers": {"spec.training": {"steps": 300, "optimizer": "SGD", "sgd": {"momentum": 0.9, "nesterov": True},
        "decay": {"kind": "WSD", "finalShare": 0, "decaySteps": 300}, "onNotFinite": "RollBack",
        "tracking": {"tensorBoard": {}, "tracker": "my.tracking:begin"}}},
    "null where a default is": {"spec.device": None, "spec.training.seed": None},
    "null where nothing need be": {"spec.data.paths": None, "spec.partition": None},
    "a learning rate of one": {"spec.training.learningRate": 1},
    "as many virtual stages as layers": {"spec.parallelism.pipeline": 5, "spec.schedule.name": "ZB-V"},
    "a partition of virtual stages": {"spec.schedule.name": "DualPipeV", "spec.partition.layers": [1, 1, 1, 1, 1, 1, 1, 3]},
    "waves": {"spec.parallelism.pipeline": 2, "spec.schedule": {"name": "Hanayo", "microBatches": 8, "virtualStages": 4}},
    "both ends": {"spec.schedule.name": "DualPipe"},
    "a last micro-batch that is smaller": {"spec.schedule.batchSize": 29},
    "a schedule of one's own": custom("F0 F1 B0 B1\nF0 B0 F1 B1"),
    "a schedule of one's own along a V": custom("route 0 1 1 0\nF0 F1 F0.1 B0.1 F1.1 B1.1 B0 B1\nF0 F0.1 F1 F1.1 B0.1 B0 B1.1 B1")
        | {"spec.partition.layers": [3, 2, 2, 3]},
    "a cap for all": {"spec.schedule": {"name": "auto", "microBatches": 8, "memoryCap": [4.5]}},
    "a cap for each": {"spec.schedule": {"name": "ZB-H1", "microBatches": 8, "memoryCap": [4, 4, 4, 4]}},
    "two weight versions": _ASYNCHRONOUS | {"spec.schedule.name": "PipeDream-2BW", "spec.schedule.updateInterval": 8},
    "vertical sync": _ASYNCHRONOUS | {"spec.schedule.verticalSync": True},
    "recomputation": {"spec.schedule.recompute": True, "spec.schedule.recomputeStages": [0, 3]},
    "dropout and a tied embedding": {"spec.model.gpt.dropout": 0.5, "spec.model.gpt.tieEmbeddings": True},
    "an evaluation": {"spec.evaluation": {"intervalSteps": 10, "batches": 3, "paths": ["/data/held-out.txt"]}},
    "a preflight": {"spec.training.preflight": True},
    "degrees to choose": {"spec.parallelism": {"gpus": 64}, "spec.schedule": {"name": "auto", "globalBatchSize": 256}},
    "some degrees to choose": {"spec.parallelism": {"gpus": 8, "tensor": 1, "data": 2}, "spec.schedule": {"batchSize": 30, "microBatches": 8}},
    "micro-batches to choose": {"spec.schedule": {"batchSize": 30}},
    "tensor parallelism, of as many ranks as heads": {"spec.parallelism": {"pipeline": 4, "tensor": 4}, "spec.device": "gpu"},
    "replicas": {"spec.parallelism": {"pipeline": 4, "data": 2, "tensor": 1}},
    "paths": {"spec.data": {"paths": ["/data/*.txt", "more.txt"], "sequenceLength": 1}},
    "tokens": {"spec.data": {"tokens": [{"path": "/data/a", "weight": 2.5}, {"path": "b"}], "packing": "Padded"},
               "spec.evaluation": {"intervalSteps": 5, "tokens": [{"path": "c"}]}, "spec.model.gpt.vocabularySize": 100},
    "levels": {"spec.topology": {"levels": ["topology.kubernetes.io/zone", "rack"], "pipeline": {"required": "rack"}}},
    "a level of the profile": {"spec.topology": {"profile": "eks", "pipeline": {"required": "zone", "preferred": "leaf"}}},
    "the node as a level": {"spec.topology": {"levels": ["rack"], "pipeline": {"required": "rack", "preferred": "node"}}},
    "a status, which nobody reads": {"status": {"state": "Training"}},
    "failure rules": {"spec.failurePolicy": {"maxRestarts": 0, "rules": [{"action": "Fail", "onExitCodes": [3, 4]}]}},
    "failure rules by condition": {"spec.failurePolicy": {"maxRestarts": 6, "restartWindowSeconds": 86400,
        "rules": [{"action": "Fail", "onPodConditions": [{"type": "DisruptionTarget"}]}]}},
    "fewer replicas rather than wait": {"spec.parallelism.data": 4, "spec.scheduling": {"minReplicas": 2},
        "spec.schedule": {"name": "1F1B", "globalBatchSize": 32}},
    "a checkpoint volume": {"spec.checkpoint": {"path": "a..b/c", "volume": {"claimName": "shared"}}},
    "a template": {"spec.template": trainer(image="mine:1", resources={"limits": {"memory": "1.5Gi", "cpu": 2}})},
    "a stage of its own": {"spec.stageTemplates": [{"stage": 3, "template": {"spec": {"nodeSelector": {"big": "yes"}}}}]},
    "the longest name": {"metadata.name": LONG_NAME[:51]},
    "labels": {"metadata.labels": {"team": "seven"}},
    "the longest life": {"spec.activeDeadlineSeconds": 2**31 - 1, "spec.ttlSecondsAfterFinished": 0},
}  # fmt: skip

_MODEL = {"spec.model.gpt.numLayers": 9}
SUSPENDED = {"spec.suspend": True}


@dataclass(frozen=True)
class Change:
    """A stored job, and what is changed; `path` is where the change is refused, None if it is allowed."""

    claim: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    path: str | None
    words: str = ""


SERVES = hugging_face() | {"spec.mode": "Serve", "spec.data": ABSENT, "spec.schedule": ABSENT, "spec.training": ABSENT}

CHANGES = [
    Change("another folder of a job that serves", SERVES, SERVES | hugging_face(huggingFace={"path": "/other"}), None),
    Change("more replicas and stages of a job that serves", SERVES, SERVES | {"spec.parallelism": {"pipeline": 3, "data": 4}}, None),
    Change("another cache of a job that serves", SERVES, SERVES | {"spec.serving.cacheTokens": 512}, None),
    Change("another model", {}, _MODEL, "spec.model", "model cannot change: the checkpoints hold this one"),
    Change("another model while suspended", SUSPENDED, SUSPENDED | _MODEL, "spec.model", "create a job of another name"),
    Change("another folder while suspended", SUSPENDED | hugging_face(), SUSPENDED | hugging_face(huggingFace={"path": "/other"}),
           "spec.model", "the checkpoints hold this one"),
    Change("other data", {}, {"spec.data": {"paths": ["/a"]}}, "spec.data", "the position in it is part of the checkpoints"),
    Change("another seed while suspended", SUSPENDED, SUSPENDED | {"spec.training.seed": 1}, "spec.training.seed", "seed cannot change"),
    Change("more stages while running", {}, {"spec.parallelism.pipeline": 5}, "spec.parallelism", "set suspend to true"),
    Change("more stages while it is being suspended", {}, SUSPENDED | {"spec.parallelism.pipeline": 5}, "spec.parallelism",
           "set suspend to true, apply, then change it"),
    Change("another schedule while running", {}, {"spec.schedule.name": "GPipe"}, "spec.schedule", "while stages run by it"),
    Change("an evaluation while running", {}, {"spec.evaluation.intervalSteps": 5}, "spec.evaluation", "while stages run by it"),
    Change("an evaluation on the text's end while suspended", SUSPENDED, SUSPENDED | {"spec.evaluation.intervalSteps": 5},
           "spec.evaluation", "takes the last twentieth of the text out of training"),
    Change("an evaluation on a text of its own while suspended", SUSPENDED,
           SUSPENDED | {"spec.evaluation": {"intervalSteps": 5, "paths": ["/b"]}}, None),
    Change("an evaluation on the end of a text begun anew", SUSPENDED,
           {"spec.evaluation.intervalSteps": 5, "spec.checkpoint.onDataChange": "StartAnew"}, None),
    Change("other data while suspended", SUSPENDED, SUSPENDED | {"spec.data": {"paths": ["/a"]}}, "spec.data",
           "set checkpoint.onDataChange to StartAnew"),
    Change("other data, begun anew", SUSPENDED,
           {"spec.data": {"paths": ["/a"]}, "spec.checkpoint.onDataChange": "StartAnew"}, None),
    Change("a partition while running", {}, {"spec.partition.layers": [3, 2, 2, 3]}, "spec.partition", "while stages run by it"),
    Change("a topology while running", {}, {"spec.topology.profile": "zone"}, "spec.topology", "while stages run by it"),
    Change("more training while running", {}, {"spec.training.steps": 400}, "spec.training", "while stages run by it"),
    Change("other checkpoints while running", {}, {"spec.checkpoint.keep": 3}, "spec.checkpoint", "while stages run by it"),
    Change("another device while running", {}, {"spec.device": "gpu"}, "spec.device", "while stages run by it"),
    Change("another GPU while running", {}, {"spec.gpuResource": "amd.com/gpu"}, "spec.gpuResource", "while stages run by it"),
    Change("another checkpoint folder while suspended", SUSPENDED, SUSPENDED | {"spec.checkpoint.path": "b"},
           "spec.checkpoint.path", "left behind in the old folder"),
    Change("a checkpoint volume while suspended", SUSPENDED, SUSPENDED | {"spec.checkpoint.volume.claimName": "b"},
           "spec.checkpoint.volume", "left behind on the old volume"),
    Change("nothing", {}, {}, None),
    Change("suspend", {}, SUSPENDED, None),
    Change("resume", SUSPENDED, {}, None),
    Change("another binding while stages run", {}, {"spec.scheduling": {"binding": "Late"}}, "spec.scheduling.binding", "set suspend to true"),
    Change("another binding while suspended", SUSPENDED, SUSPENDED | {"spec.scheduling": {"binding": "Late"}}, None),
    Change("another priority while stages run", {}, {"spec.scheduling": {"priorityClassName": "high"}}, None),
    Change("more stages while suspended", SUSPENDED, SUSPENDED | {"spec.parallelism.pipeline": 5}, None),
    Change("more stages at resuming", SUSPENDED, {"spec.parallelism.pipeline": 5}, None),
    Change("more training while suspended", SUSPENDED, SUSPENDED | {"spec.training.steps": 400}, None),
    Change("more restarts while running", {}, {"spec.failurePolicy.maxRestarts": 50}, None),
    Change("a deadline while running", {}, {"spec.activeDeadlineSeconds": 50}, None),
    Change("a template for the next restart", {}, {"spec.template": trainer(image="mine:2")}, None),
]  # fmt: skip
