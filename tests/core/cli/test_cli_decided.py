"""`pipelinejob run` of a manifest that leaves something open: chosen for the machine, and no more than it has."""

import pytest
import yaml

from pipelinejob.base.errors import SpecError
from pipelinejob_operator.cli.given.decided import decided
from pipelinejob_operator.cli.given.manifests import jobs_in, read_documents
from pipelinejob_operator.local.node.machine import Machine

MACHINE = Machine(hostname="here", cores=4, memory_bytes=2**34)


def job(manifest, **changes):
    file = manifest(**changes)
    (found,) = jobs_in(read_documents(file), file)
    return found


def test_what_is_open_is_chosen_for_the_processors_of_the_machine(manifest) -> None:
    given = job(manifest, parallelism={"gpus": 64}, schedule={"name": "1F1B", "globalBatchSize": 16})

    made, choice = decided(given, MACHINE)

    assert choice is not None
    assert not made.spec.is_open
    assert 1 <= made.spec.parallelism.pipeline * made.spec.parallelism.data <= 4
    assert made.spec.parallelism.data * made.spec.schedule.sequences == 16
    assert made.manifest["spec"]["model"] == given.manifest["spec"]["model"]


def test_what_the_manifest_fixes_stays(manifest) -> None:
    given = job(manifest, parallelism={"gpus": 4, "pipeline": 2}, schedule={"name": "GPipe", "globalBatchSize": 8})

    made, _ = decided(given, MACHINE)

    assert made.spec.parallelism.pipeline == 2
    assert made.spec.schedule.name == "GPipe"


def test_a_decided_manifest_is_left_as_it_is(manifest) -> None:
    given = job(manifest)

    assert decided(given, MACHINE) == (given, None)


def test_stages_that_the_manifest_fixes_may_share_processors(manifest) -> None:
    given = job(manifest, parallelism={"gpus": 64, "pipeline": 8}, schedule={"name": "1F1B", "globalBatchSize": 8})

    made, _ = decided(given, MACHINE)

    assert (made.spec.parallelism.pipeline, made.spec.parallelism.data) == (8, 1)


def test_stages_never_share_a_gpu(manifest) -> None:
    parallelism, schedule = {"gpus": 64, "pipeline": 8}, {"name": "1F1B", "globalBatchSize": 8}
    given = job(manifest, device="gpu", parallelism=parallelism, schedule=schedule)

    with pytest.raises(SpecError, match="among 2 devices"):
        decided(given, Machine(hostname="here", cores=4, memory_bytes=2**34, gpus=("0", "1")))


def test_the_manifest_that_is_run_is_the_decided_one(manifest) -> None:
    given = job(manifest, parallelism={"gpus": 2}, schedule={"name": "1F1B", "globalBatchSize": 4})

    made, _ = decided(given, MACHINE)

    assert "globalBatchSize" not in yaml.safe_dump(dict(made.manifest))
    assert "gpus" not in made.manifest["spec"]["parallelism"]
