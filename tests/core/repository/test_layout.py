"""Guards the repository's shape: `operator` is also a module of the standard library, and must stay that."""

import json
import operator
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_no_python_file_stands_directly_in_operator():
    assert list((ROOT / "operator").glob("*.py")) == []


def test_no_test_folder_is_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_standard_library_keeps_its_operator_module():
    assert operator.add(2, 3) == 5
    result = subprocess.run(
        [sys.executable, "-c", "import operator, json; print(json.dumps(operator.__file__))"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert not json.loads(result.stdout).startswith(str(ROOT))


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]

    assert sorted(names) == sorted(set(names))


def test_no_folder_of_tests_holds_more_than_sixteen_files():
    tests = ROOT / "tests"
    folders = [tests, *(path for path in tests.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    counts = {str(folder.relative_to(ROOT)): sum(path.is_file() for path in folder.iterdir()) for folder in folders}

    assert {folder: count for folder, count in counts.items() if count > 16} == {}


@pytest.mark.parametrize("package", ["pipelinejob", "pipelinejob_operator", "pipelinejob_trainer"])
def test_the_wheel_carries_all_three_packages(package, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    assert f"{package}/__init__.py" in names
    assert f"{package}/py.typed" in names


def test_the_wheel_carries_the_data_on_hardware(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert "pipelinejob/fabric/hardware.toml" in archive.namelist()


def test_the_wheel_carries_the_templates_of_pages(wheel):
    folder = ROOT / "operator" / "src" / "pipelinejob_operator" / "report" / "pages" / "templates"
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if "/templates/" in name}

    assert carried == {f"pipelinejob_operator/report/pages/templates/{file.name}" for file in folder.iterdir()}


def test_the_core_imports_in_an_environment_of_its_own(wheel, tmp_path):
    """Without kopf, torch or kubernetes on the path, the pure core works."""
    pure = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(pure)
    code = f"""
import sys
for module in ("kopf", "kubernetes", "torch", "prometheus_client", "yaml"):
    sys.modules[module] = None  # importing it now fails
sys.path.insert(0, {str(pure)!r})
import pipelinejob.planning.planner
print(pipelinejob.planning.planner.__file__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(pure))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    return next(out.glob("*.whl"))
