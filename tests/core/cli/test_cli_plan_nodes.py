"""`pipelinejob plan --nodes`: where it places, and what it says where a job does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelinejob.contract.plan import Plan
from pipelinejob_operator.report.numbers import gib, seconds

EXAMPLE = Path(__file__).parents[3] / "examples" / "stdlib-gpt.yaml"


def node(name: str, gpus: int, leaf: str) -> dict[str, Any]:
    resources = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": leaf}},
        "status": {"allocatable": resources, "conditions": [{"type": "Ready", "status": "True"}]},
    }


QUICK = ("--alternatives", "0")  # looks for no other configurations


THREE_NODES = [node("a", 2, "zone-a"), node("b", 2, "zone-a"), node("c", 2, "zone-b")]


def pod(name: str, on: str, gpus: int) -> dict[str, Any]:
    container = {"name": "c", "resources": {"requests": {"nvidia.com/gpu": str(gpus)}}}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "team"},
        "spec": {"nodeName": on, "containers": [container]},
    }


@pytest.fixture
def nodes_file(tmp_path: Path):
    def write(nodes: list[dict[str, Any]]) -> Path:
        file = tmp_path / "nodes.json"
        file.write_text(json.dumps({"items": nodes}))
        return file

    return write


def test_json_says_where_every_rank_goes(call, manifest, nodes_file) -> None:
    file = manifest(device="gpu", parallelism={"pipeline": 2, "data": 2})

    told = json.loads(call("plan", file, "--nodes", nodes_file(THREE_NODES), "-o", "json", *QUICK).out)

    zones = {"a": "zone-a", "b": "zone-a", "c": "zone-b"}
    assert [(rank["replica"], rank["index"]) for rank in told["stages"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(rank["path"] == [zones[rank["node"]], rank["node"]] for rank in told["stages"])
    assert told["fits"] is True
    assert told["placement"]["nodes"] == sorted({rank["node"] for rank in told["stages"]})
    assert told["placement"]["crossings"]["zone"] == 0


def test_people_and_programs_are_told_the_same_figures(call, manifest, nodes_file) -> None:
    arguments = ("plan", manifest(device="gpu"), "--nodes", nodes_file(THREE_NODES), *QUICK)

    told = json.loads(call(*arguments, "-o", "json").out)
    lines = call(*arguments).out.partition("memory: ")[0].splitlines()

    assert any(f"{seconds(told['prediction']['stepSeconds'])} a step" in line for line in lines)
    assert any(f"bubble {told['prediction']['bubble']:.1%}" in line for line in lines)
    for rank in told["stages"]:
        (row,) = (line.split() for line in lines if line.split()[:1] == [str(rank["index"])])
        assert row[1] == "-".join(str(number) for number in (rank["layers"][0][0], rank["layers"][0][1] - 1))
        assert row[2] == f"{rank['parameters']:,}"
        assert " ".join(row[3:5]) == seconds(rank["forwardSeconds"])
        assert " ".join(row[5:7]) == seconds(rank["backwardSeconds"])
        assert row[7] == f"{rank['bubble']:.1%}"
        assert " ".join(row[8:10]) == gib(rank["memoryBytes"])
        assert row[10] == "/".join(rank["path"])


def test_several_jobs_are_told_one_after_the_other_and_one_that_does_not_fit_counts(
    call, manifest, nodes_file, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.yaml"
    small = manifest(device="gpu", parallelism={"pipeline": 2}).read_text()
    file.write_text(f"{small}\n---\n{manifest(device='gpu').read_text().replace('stdlib-gpt', 'large')}")

    result = call("plan", file, "--nodes", nodes_file([node("a", 2, "zone-a")]), *QUICK)

    assert result.code == 4
    assert "default/stdlib-gpt  2 stages" in result.out
    assert "default/large  4 stages" in result.out
    assert result.err.startswith("error: default/large does not fit: ")


def test_a_narrow_terminal_is_told_less_of_each_but_no_figure_is_cut(
    call, manifest, nodes_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    out = call("plan", manifest(device="gpu"), "--nodes", nodes_file(THREE_NODES), *QUICK).out

    assert "parameters  " not in out
    assert "zone-a/a" in out
    assert "…" not in out


def test_given_nodes_the_stages_are_placed_and_their_pods_pinned(call, manifest, nodes_file) -> None:
    arguments = ("plan", manifest(device="gpu"), "--nodes", nodes_file(THREE_NODES), *QUICK)

    plan = Plan.model_validate(json.loads(call(*arguments, "-o", "json").out)["plan"])
    items = list(yaml.safe_load_all(call(*arguments, "--manifests").out))
    said = call(*arguments).out

    assert plan.placement
    assert [each.node for each in plan.placement.assignments] == ["a", "a", "b", "b"]
    assert "schedulingGates" not in items[2]["spec"]
    assert "placement: 2 nodes; of the stage boundaries 1 cross a node" in said
    assert "6 of 6 nvidia.com/gpu free" in said


def test_nodes_may_be_yaml_and_pods_take_their_room(call, manifest, tmp_path: Path) -> None:
    nodes, pods = tmp_path / "nodes.yaml", tmp_path / "pods.json"
    nodes.write_text(yaml.safe_dump({"items": THREE_NODES}))
    pods.write_text(json.dumps({"items": [pod("other", "a", 2)]}))
    arguments = ("plan", manifest(device="gpu"), "--nodes", nodes, "--pods", pods, "-o", "json", *QUICK)

    now, empty = (json.loads(call(*arguments, *more).out) for more in ((), ("--empty",)))

    assert {rank["node"] for rank in now["stages"]} == {"b", "c"}
    assert {rank["node"] for rank in empty["stages"]} == {"a", "b"}
    assert "as if empty" in empty["where"]


def test_what_the_job_itself_holds_counts_as_free(call, manifest, nodes_file, tmp_path: Path) -> None:
    pods = tmp_path / "pods.json"
    own = pod("stdlib-gpt-r0-s0", "a", 2)
    own["metadata"] |= {"namespace": "default", "labels": {"pipelinejob.io/name": "stdlib-gpt"}}
    pods.write_text(json.dumps({"items": [own, pod("other", "c", 2)]}))

    result = call("plan", manifest(device="gpu"), "--nodes", nodes_file(THREE_NODES), "--pods", pods, *QUICK)

    assert result.code == 0


def test_a_job_that_fits_no_node_ends_with_4_and_one_sentence(call, manifest, nodes_file) -> None:
    result = call("plan", manifest(device="gpu"), "--nodes", nodes_file([node("a", 2, "zone-a")]))

    assert result.code == 4
    assert result.err.startswith("error: default/stdlib-gpt does not fit: needs room for 4 stages")
    assert "nvidia.com/gpu" in result.err
    assert result.err.count("\n") == 1


def test_what_does_not_fit_is_told_what_would_and_its_price(call, manifest, nodes_file) -> None:
    file = manifest(device="gpu", topology={"pipeline": {"required": "zone"}})
    nodes = nodes_file([node("a", 3, "zone-a"), node("b", 1, "zone-b")])

    result = call("plan", file, "--nodes", nodes)
    told = json.loads(call("plan", file, "--nodes", nodes, "-o", "json").out)

    assert result.code == 4
    assert "zone preferred instead of required" in result.out
    assert (told["fits"], told["placement"]) == (False, None)
    loose, fewer = sorted(told["alternatives"], key=lambda each: each["what"], reverse=True)
    assert loose["fields"] == {"spec.topology.pipeline.required": None, "spec.topology.pipeline.preferred": "zone"}
    assert loose["crossings"] == {"zone": 1, "node": 1}
    assert fewer["fields"] == {"spec.parallelism.pipeline": 3}
    assert [each["price"] for each in told["alternatives"]] == sorted([loose["price"], fewer["price"]])
    assert f"{loose['price']:+.1%}" in result.out
    assert f"{fewer['price']:+.1%}" in result.out


def test_fewer_replicas_are_priced_by_the_work_they_do(call, manifest, nodes_file) -> None:
    file = manifest(device="gpu", parallelism={"pipeline": 1, "data": 4})

    told = json.loads(call("plan", file, "--nodes", nodes_file([node("a", 2, "zone-a")]), "-o", "json").out)

    (way,) = told["alternatives"]
    assert way["fields"] == {"spec.parallelism.data": 2}
    assert "2/4 of the sequences" in way["what"]
    assert 0.5 < way["price"] < 1  # half the devices: nearly half the pace, as fewer copies sum their gradients


@pytest.mark.parametrize(
    ("content", "said"), [("{}", "holds no list of nodes"), ("{", "is no JSON"), (None, "No such file")]
)
def test_a_nodes_file_that_is_none_is_wrong_usage(call, tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "nodes.json"
    if content is not None:
        file.write_text(content)

    result = call("plan", EXAMPLE, "--nodes", file)

    assert (result.code, said in result.err) == (2, True)


def test_a_page_shows_the_fabric_with_the_chain_on_it(call, manifest, nodes_file, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"

    result = call("plan", manifest(device="gpu"), "--nodes", nodes_file(THREE_NODES), "--html", page, *QUICK)
    written = page.read_text()

    assert result.code == 0
    assert f"wrote {page}" in result.err
    assert "all figures are predictions" in written
    assert 'class="chain near"' in written  # from node a to node b, within the zone
    assert "stage 1 to 2 of replica 0" in written
    assert "http" not in written.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere


def test_a_page_of_what_does_not_fit_says_why_and_what_would(call, manifest, nodes_file, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"

    call("plan", manifest(device="gpu"), "--nodes", nodes_file([node("a", 2, "zone-a")]), "--html", page)
    written = page.read_text()

    assert "does not fit" in written
    assert "2 more are missing" in written
    assert "What would fit now" in written
    assert "pipeline: 2" in written
