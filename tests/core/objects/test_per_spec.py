"""What is kept once for all jobs that are written alike, and goes with the last of them."""

import gc

from pipelinejob_operator.objects.job import read_job
from pipelinejob_operator.objects.per_spec import PerSpec
from support.manifests.jobs import job


def stored(name, *, waits_for="a", **spec):
    manifest = job(name, **spec)
    conditions = [
        {"type": "Placed", "status": "False", "reason": "NoRoom", "lastTransitionTime": "t", "message": waits_for}
    ]
    return {**manifest, "metadata": {**manifest["metadata"], "uid": name}, "status": {"conditions": conditions}}


def test_jobs_written_alike_are_reckoned_once_and_others_for_themselves():
    reckoned = []
    result = PerSpec(lambda spec: reckoned.append(spec.parallelism.pipeline) or spec.parallelism.pipeline)
    jobs = [read_job(stored(name, parallelism={"pipeline": stages})) for name, stages in (("a", 2), ("b", 2), ("c", 3))]

    assert [result(each.spec) for each in jobs] == [2, 2, 3]
    assert reckoned == [2, 3]


def test_a_result_goes_with_the_last_job_that_has_the_spec():
    result = PerSpec(lambda spec: spec.parallelism.pipeline)
    only = read_job(stored("only", parallelism={"pipeline": 7}))
    result(only.spec)

    del only
    gc.collect()

    assert result._known == {}


def test_names_of_a_statuss_fields_are_kept_once_and_stay_as_they_were():
    first, second = (read_job(stored(name, waits_for=name)).status for name in ("a", "b"))
    names = first.conditions[0].model_fields_set

    changed = first.conditions[0].model_copy(update={"observed_generation": 3})

    assert second.conditions[0].model_fields_set is names
    assert names == {"type", "status", "reason", "message", "last_transition_time"}
    assert changed.model_fields_set == names | {"observed_generation"}
