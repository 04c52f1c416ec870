"""Reading YAML as kubectl does; tests/cluster/api/test_api_validation.py compares with kubectl itself."""

import pytest

from pipelinejob.base.errors import InvalidManifestError
from pipelinejob_operator.validation.manifest_files import load_manifests


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-3", 0.003), ("1e3", 1000), ("1.0", 1), ("0.5", 0.5), ("1F1B", "1F1B"), ("12:30", "12:30"), ("on", True),
        ("2026-11-21", "2026-11-21"), ("'7'", "7"), ("010", 8), ("0x1F", 31), ("~", None), ("", None),
    ],
)  # fmt: skip
def test_a_scalar_is_what_kubectl_takes_it_for(text, value):
    (read,) = load_manifests(f"a: {text}")

    assert read == {"a": value}
    assert type(read["a"]) is type(value)


def test_a_key_given_twice_is_an_error_with_its_place():
    with pytest.raises(
        InvalidManifestError, match=r"manifest:3:1: spec is given twice in one mapping; keep one of them"
    ):
        load_manifests("spec: {}\nkind: PipelineJob\nspec: {}\n")


def test_keys_of_an_anchor_may_be_overridden():
    (read,) = load_manifests("base: &base {a: 1, b: 2}\nmore:\n  <<: *base\n  b: 3\n")

    assert read["more"] == {"a": 1, "b": 3}


def test_several_documents_are_several_manifests():
    assert load_manifests("---\na: 1\n---\n---\nb: 2\n") == [{"a": 1}, {"b": 2}]


def test_json_is_yaml():
    assert load_manifests('{"a": [1, 2.5, null]}') == [{"a": [1, 2.5, None]}]


def test_keys_are_texts_as_in_json():
    assert load_manifests("1: a\ntrue: b\n") == [{"1": "a", "true": "b"}]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "there is nothing in it"),
        ("# only a comment", "there is nothing in it"),
        ("just words", "'just words' is no mapping"),
        ("- a\n- b", "is no mapping"),
        ("a: [1, 2", "manifest:1:9: "),
        ("a: b: c", "manifest:1:5: mapping values are not allowed here"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: \0", "is no YAML"),
        ("? [a]\n: b", "a key must be a plain text"),
        ("a: *nobody", "undefined alias"),
    ],
)
def test_what_is_no_manifest_is_refused_with_a_reason(text, complaint):
    with pytest.raises(InvalidManifestError) as caught:
        load_manifests(text)

    assert complaint in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InvalidManifestError, match=r"absent\.yaml: cannot be read: No such file or directory"):
        load_manifests(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InvalidManifestError, match=r"binary\.yaml: cannot be read: it is no UTF-8 text"):
        load_manifests(tmp_path / "binary.yaml")
    with pytest.raises(InvalidManifestError, match="cannot be read: Is a directory"):
        load_manifests(tmp_path)
