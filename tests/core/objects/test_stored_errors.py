"""The errors of a stored job are those of its manifest, and are worked out once for each spec."""

import copy

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pipelinejob_operator.validation.stored import StoredErrors, find_errors
from support.examples import examples
from support.manifests.jobs import job

SPECS = [
    job()["spec"],
    job(parallelism={"pipeline": 9})["spec"],  # more stages than layers
    job(model={"entrypoint": "a:b", "numLayers": 4, "arguments": {"not a name": 1}})["spec"],
    {**job()["spec"], "unheardOf": 1},
]
NAMES = ["gpt", "other", "Capital", "x" * 60]


def stored(name, spec, generation=1):
    manifest = job(name)
    metadata = manifest["metadata"] | {"uid": f"uid-{name}", "generation": generation, "labels": {"a": name}}
    return manifest | {"metadata": metadata, "spec": copy.deepcopy(spec), "status": {"attempt": generation}}


def sentences(errors):
    return [str(error) for error in errors]


@pytest.mark.parametrize("spec", SPECS[1:], ids=["a rule", "a check", "the schema"])
def test_the_samples_are_wrong_in_different_ways(spec):
    assert find_errors(stored("gpt", spec))
    assert not find_errors(stored("gpt", SPECS[0]))


@settings(max_examples=examples(30))
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(SPECS)), min_size=2, max_size=12))
def test_in_whatever_order_jobs_come_each_has_its_own_errors(jobs):
    errors = StoredErrors()

    for name, spec in jobs:
        raw = stored(name, spec)
        assert sentences(errors(raw)) == sentences(find_errors(raw))


def test_a_spec_that_many_jobs_share_is_looked_at_once():
    seen = []
    errors = StoredErrors(lambda raw: seen.append(raw["metadata"]["name"]) or find_errors(raw))

    for number in range(50):
        errors(stored(f"gpt-{number}", SPECS[0], generation=number))
    errors(stored("other", SPECS[1]))

    assert seen == ["gpt-0", "other"]
