"""What the CRD's rules say of schedules by name is what the schedules are."""

import pytest

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob.scheduler.catalogue import FAMILIES, build, family
from pipelinejob.schedules.actions import ScheduleError
from pipelinejob.schedules.families import ASYNCHRONOUS
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.schedules.setting import Setting
from pipelinejob_operator.validation.validate import validate
from support.manifests.building import manifest

NAMED = [name for name in FAMILIES if name not in {ScheduleName.AUTO, ScheduleName.FORWARD_ONLY}]
MODEL = {"gpt": {"numLayers": 14, "hiddenSize": 64, "numHeads": 4}}  # 16 layers


def refused(name: ScheduleName, **changes) -> set[str]:
    """Return the fields that are complained about in a job on four stages."""
    clip_norm = 0 if name in ASYNCHRONOUS else 1
    schedule = {"name": name.value, "microBatches": 8} | changes.pop("schedule", {})
    spec = {"spec.model": MODEL, "spec.schedule": schedule, "spec.training.clipNorm": clip_norm}
    try:
        validate(manifest(spec | changes))
    except InvalidManifestError as error:
        return {each.path for each in error.errors}
    return set()


def sizes(p: int, m: int = 8) -> Setting:
    return Setting(num_ranks=p, num_micro_batches=m)


def test_every_schedule_can_be_asked_for():
    assert {*FAMILIES, ScheduleName.CUSTOM} == set(ScheduleName)


@pytest.mark.parametrize("name", NAMED)
def test_a_partition_has_an_entry_for_each_stage_of_the_route(name):
    num_stages = build(name, sizes(4)).num_stages

    accepted = [s for s in (4, 8, 16) if not refused(name, **{"spec.partition.layers": [16 // s] * s})]

    assert accepted == [num_stages]


@pytest.mark.parametrize("name", NAMED)
def test_virtual_stages_are_the_choice_of_who_has_one(name):
    is_refused = refused(name, schedule={"virtualStages": 2}) == {"spec.schedule.virtualStages"}

    assert is_refused == (not family(name).chunk_choice)


@pytest.mark.parametrize("name", NAMED)
def test_odd_numbers_of_stages_are_refused_where_there_is_no_schedule_for_them(name):
    try:
        build(name, sizes(3))
    except ScheduleError:
        assert refused(name, **{"spec.parallelism.pipeline": 3}) == {"spec.parallelism.pipeline"}
    else:
        assert not refused(name, **{"spec.parallelism.pipeline": 3})


@pytest.mark.parametrize("name", NAMED)
def test_who_updates_within_a_step_clips_nothing(name):
    is_refused = refused(name, **{"spec.training.clipNorm": 1}) == {"spec.training.clipNorm"}

    assert is_refused == build(name, sizes(4)).is_asynchronous
