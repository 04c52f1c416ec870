"""Changes of a stored job: which the API takes, and the words with which it refuses the others."""
# ruff: noqa: E501  # a table reads best with a case a line

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from support.manifests.building import ABSENT, hugging_face, trainer

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
IN_PLACE = {
    "spec.recovery": {"inPlace": True},
    "spec.parallelism": {"pipeline": 4, "data": 1},
    "spec.schedule": {"name": "1F1B", "globalBatchSize": 8, "microBatchSize": 1},
}

CHANGES = [
    Change("more stages with recovery in place", IN_PLACE, IN_PLACE | {"spec.parallelism": {"pipeline": 5, "data": 1}}, None),
    Change("more stages in place, and replicas", IN_PLACE, IN_PLACE | {"spec.parallelism": {"pipeline": 5, "data": 2}}, None),
    Change("another schedule with recovery in place", IN_PLACE,
           IN_PLACE | {"spec.schedule": {"name": "Interleaved1F1B", "globalBatchSize": 8, "microBatchSize": 1, "virtualStages": 2}}, None),
    Change("a partition with recovery in place", IN_PLACE, IN_PLACE | {"spec.partition.layers": [3, 2, 2, 3]}, None),
    Change("another batch with recovery in place", IN_PLACE,
           IN_PLACE | {"spec.schedule": {"name": "1F1B", "globalBatchSize": 16, "microBatchSize": 1}}, "spec.schedule", "but for name, virtualStages"),
    Change("other devices with recovery in place", IN_PLACE, IN_PLACE | {"spec.parallelism": {"pipeline": 4, "data": 1, "gpus": 8}},
           "spec.parallelism", "but for data"),
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
