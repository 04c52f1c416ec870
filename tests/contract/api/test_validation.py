"""What `pipelinejob validate` says of a manifest; tests/cluster/api/test_api_validation.py asks an API server."""

import pytest

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob.spec.job import PipelineJobSpec, ScheduleName
from pipelinejob_operator.validation.validate import defaulted, validate, validate_change
from support.manifests.badinput import ENVELOPES, FIELDS, GOOD, RULES, Bad
from support.manifests.building import ABSENT, manifest
from support.manifests.changing import CHANGES, Change
from support.manifests.unseen import UNSEEN

BAD = [*RULES, *FIELDS, *ENVELOPES, *UNSEEN]


@pytest.mark.parametrize("bad", BAD, ids=[bad.claim for bad in BAD])
def test_each_mistake_gets_its_own_clear_error(bad: Bad):
    with pytest.raises(InvalidManifestError) as caught:
        validate(manifest(bad.changes))

    first = next(error for error in caught.value.errors if error.path == bad.path and bad.words in error.problem)
    assert {error.path for error in caught.value.errors} - set(bad.others) == {first.path}


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_a_good_manifest_is_read(changes):
    spec = validate(manifest(changes))

    assert isinstance(spec, PipelineJobSpec)


def test_all_mistakes_are_named_at_once():
    changes = {
        "spec.parallelism.pipeline": 11,
        "spec.schedule.name": "TwoPipe",
        "spec.data": {},
        "spec.training": ABSENT,
    }

    with pytest.raises(InvalidManifestError) as caught:
        validate(manifest(changes))

    assert {error.path for error in caught.value.errors} == {
        "spec.parallelism.pipeline", "spec.schedule.name", "spec.data", "spec.training",
    }  # fmt: skip


def test_a_finished_job_is_never_run_again():
    ended = manifest() | {"status": {"completionTime": "2026-01-02T03:04:05Z"}}

    with pytest.raises(InvalidManifestError) as caught:
        validate_change(ended, manifest({"spec.suspend": True}))

    assert [error.path for error in caught.value.errors] == ["spec.suspend"]
    assert validate_change(ended, manifest({"spec.ttlSecondsAfterFinished": 60}))


def test_the_table_is_long_enough_and_repeats_nothing():
    assert len(BAD) >= 40
    assert len({bad.claim for bad in BAD}) == len(BAD)


def test_defaults_are_those_of_the_types():
    stored = defaulted(manifest())

    assert PipelineJobSpec.model_validate(stored["spec"]) == PipelineJobSpec.model_validate(manifest()["spec"])
    assert stored["spec"]["training"]["weightDecay"] == 0.1
    assert stored["spec"]["topology"] == {"profile": "auto", "pipeline": {}, "objective": "auto", "threshold": 0.01}
    assert validate(manifest()).schedule.name is ScheduleName.ONE_F_ONE_B


@pytest.mark.parametrize("change", CHANGES, ids=[change.claim for change in CHANGES])
def test_a_change_is_allowed_where_it_can_be_honoured(change: Change):
    old, new = manifest(change.before), manifest(change.after)

    if change.path is None:
        assert validate_change(old, new) == validate(new)
        return
    with pytest.raises(InvalidManifestError) as caught:
        validate_change(old, new)
    assert [error.path for error in caught.value.errors] == [change.path]
    assert change.words in caught.value.errors[0].problem
