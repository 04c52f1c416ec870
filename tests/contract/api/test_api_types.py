"""The API as data: what must hold of every field that a user will live with."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelinejob.base import names
from pipelinejob.base.errors import InvalidManifestError
from pipelinejob.spec.crds import crd
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.status import PipelineJobStatus, decimal, percent
from pipelinejob_operator.validation.crdfile import contents
from pipelinejob_operator.validation.validate import defaulted, validate
from support.manifests.building import fields, values, with_value

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = crd.root_schema()["properties"]


SPEC = dict(fields("spec", SCHEMA["spec"]))
STATUS = dict(fields("status", SCHEMA["status"]))


@pytest.mark.parametrize("path", [path for path in {**SPEC, **STATUS} if not path.endswith("[]")])
def test_every_field_says_what_it_is_in_a_sentence(path):
    description = {**SPEC, **STATUS}[path]["description"]

    assert re.fullmatch(r"[A-Z`a-z0-9].{6,}\.", description), description


@pytest.mark.parametrize("path", SPEC)
def test_nothing_in_the_spec_is_unbounded(path):
    """CEL's cost is estimated from these bounds, and the store takes 1.5 MiB."""
    field = SPEC[path]
    bounds = {"string": "maxLength", "array": "maxItems", "integer": "maximum", "number": "maximum"}

    if field["type"] in bounds and "enum" not in field:
        assert bounds[field["type"]] in field
    if isinstance(field.get("additionalProperties"), dict):
        assert "maxProperties" in field


@pytest.mark.parametrize("path", [path for path, field in {**SPEC, **STATUS}.items() if field["type"] == "array"])
def test_every_list_says_how_two_appliers_share_it(path):
    assert {**SPEC, **STATUS}[path]["x-kubernetes-list-type"] in {"atomic", "set", "map"}


def test_the_status_holds_no_fractions():
    assert [path for path, field in STATUS.items() if field["type"] == "number"] == []


@pytest.mark.parametrize("path", contents())
def test_generated_files_are_current(path):
    assert (ROOT / path).read_text(encoding="utf-8") == contents()[path], "run `make generate`"


def test_every_column_shows_a_field_that_exists():
    (version,) = crd.generate()["spec"]["versions"]
    columns = (column["jsonPath"].removeprefix(".") for column in version["additionalPrinterColumns"])
    paths = {re.sub(r"\[\d+\]", "[]", path) for path in columns}

    assert paths - {"metadata.creationTimestamp"} <= {*SPEC, *STATUS}


def test_a_rule_says_rule_and_way_out():
    text = json.dumps(crd.generate())
    rules = re.findall(r'"message": "(.*?)"', text)

    assert len(rules) >= 30
    assert all(len(rule) > 25 for rule in rules)


def test_the_longest_name_still_names_a_pod():
    name = "a" * names.MAX_JOB_NAME_LENGTH

    assert len(names.pod_name(name, replica=1023, stage=1023)) == 63


def test_a_status_reads_back_as_it_was_written():
    status = PipelineJobStatus.model_validate({
        "observedGeneration": 2,
        "state": "Training",
        "conditions": [
            {"type": "Succeeded", "status": "Unknown", "reason": "Steps", "lastTransitionTime": "2026-01-02T03:04:05Z"}
        ],
        "plan": {
            "stages": [{"stage": 0, "layers": "0-4", "memoryBytes": 1}],
            "stepSeconds": "0.1", "bubble": "27.3%", "tokensPerSecond": "18250", "source": "analytic",
        },
        "stages": [{"replica": 0, "stage": 0, "pod": "a-r0-s0"}],
    })  # fmt: skip

    assert PipelineJobStatus.model_validate(status.dump()) == status


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (2.43123, "2.431"),
        (18250.4, "18250"),
        (0.00312, "0.0031"),
        (0.0, "0.0000"),
        (999.9996, "1000.000"),
        (-3.0, "-3.000"),
    ],
)
def test_numbers_in_a_status_are_short(number, text):
    assert decimal(number) == text


def test_ratios_in_a_status_are_percent():
    assert percent(0.2727) == "27.3%"
    assert percent(0.5, digits=0) == "50%"


@given(path=st.sampled_from(list(SPEC)), value=values())
def test_whatever_stands_in_a_field_is_read_or_refused_with_a_reason(path, value):
    """No value of any field makes the validation itself fail."""
    changed = with_value(path, value)

    try:
        spec = validate(changed)
    except InvalidManifestError as invalid:
        reasons = [error.problem for error in invalid.errors]
        spec = None
    else:
        reasons = []

    assert all(reasons)
    assert bool(reasons) == (spec is None)
    assert spec is None or spec == PipelineJobSpec.model_validate(defaulted(changed)["spec"])
