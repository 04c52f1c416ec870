"""A Hugging Face `config.json` instead of a manifest: what is planned for a model before there is a job of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelinejob.base import names
from pipelinejob.base.errors import PipelineJobError, SpecError
from pipelinejob.spec.job import Model
from pipelinejob_operator.cli.given.manifests import GivenJob, given_job

_BATCH_OF_A_GPU = 1  # sequences in a step, for each GPU, where nothing is said
_LONGEST_DEFAULT = 4096  # tokens; models that could take many more are seldom trained on them


class ModelFileError(PipelineJobError):
    """A model's config lacks something that only the command line can say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigTraining:
    """What a model's config does not say of its training. None: not given."""

    gpus: int | None = None
    sequence_length: int | None = None
    batch_size: int | None = None  # sequences in a step, over all replicas


def is_config(document: Mapping[str, Any]) -> bool:
    """Tell whether a document is a model's config, not a manifest."""
    return "kind" not in document and "spec" not in document and bool({"model_type", "architectures"} & set(document))


def job_of_config(config: Mapping[str, Any], file: Path, training: ConfigTraining) -> GivenJob:
    """Make the job that would train the model: degrees, schedule and micro-batches are left open.

    Raises ModelFileError if the number of GPUs is not given, InvalidManifestError for a config
    that cannot be read.
    """
    if training.gpus is None:
        raise ModelFileError(f"{file}: is the config of a model; for how many GPUs? Give --gpus, as in --gpus 64")
    try:
        num_layers = Model.of_config(config).num_layers
    except SpecError as error:
        raise ModelFileError(f"{file}: {error}") from error
    return given_job(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": _name(config, file)},
            "spec": {
                "model": {
                    "huggingFace": {"path": str(file.resolve().parent)},
                    "numLayers": num_layers,
                    "config": dict(config),
                },
                "data": {
                    "corpus": "python-stdlib",
                    "sequenceLength": training.sequence_length or _sequence_length(config),
                },
                "parallelism": {"gpus": training.gpus},
                "schedule": {
                    "name": "auto",
                    "globalBatchSize": training.batch_size or training.gpus * _BATCH_OF_A_GPU,
                },
                "training": {"steps": 1, "precision": "bf16"},
            },
        }
    )


def _sequence_length(config: Mapping[str, Any]) -> int:
    known = next((config[key] for key in ("max_position_embeddings", "n_positions", "n_ctx") if key in config), None)
    return min(known, _LONGEST_DEFAULT) if isinstance(known, int) and known > 0 else _LONGEST_DEFAULT


def _name(config: Mapping[str, Any], file: Path) -> str:
    """Name the job after the model: as its config says, else its folder."""
    said = str(config.get("_name_or_path") or "") or file.resolve().parent.name or str(config.get("model_type"))
    plain = re.sub(r"[^a-z0-9]+", "-", said.rsplit("/", 1)[-1].lower()).strip("-")[: names.MAX_JOB_NAME_LENGTH]
    return plain.strip("-") if re.match(r"[a-z]", plain) else f"model-{plain}"[: names.MAX_JOB_NAME_LENGTH].strip("-")
