"""TopologyProfiles, good and bad, put to the command line and to a real API server alike."""

from typing import Any, NamedTuple

SPEC: dict[str, Any] = {
    "levels": [
        {"name": "superpod", "keys": ["example.com/superpod"], "link": {"kind": "infiniband-ndr"}},
        {"name": "leaf", "keys": ["example.com/leaf", "example.com/old-leaf"]},
        {"name": "rack", "keys": ["example.com/nvl72"], "optional": True, "link": {"kind": "nvl72"}},
    ],
    "clusterLink": {"bytesPerSecond": 1.25e8, "latencySeconds": 0.03},
}


def profile(*, name: str = "our-cluster", **spec: Any) -> dict[str, Any]:
    """Return a good TopologyProfile with some fields changed."""
    return {
        "apiVersion": "pipelinejob.io/v1alpha1",
        "kind": "TopologyProfile",
        "metadata": {"name": name},
        "spec": {**SPEC, **spec},
    }


GOOD = profile()


class Bad(NamedTuple):
    """A manifest that nobody takes; `problem` is part of what is said at `path`."""

    claim: str
    manifest: dict[str, Any]
    path: str
    problem: str


def _level(**changes: Any) -> dict[str, Any]:
    return {"name": "leaf", "keys": ["a/b"], **changes}


BAD = [
    Bad("auto is no name", profile(name="auto"), "metadata.name", "cannot be named by jobs"),
    Bad("a long name is none that a job can give", profile(name="a" * 64), "metadata.name", "cannot be named by jobs"),
    Bad("there are levels", profile(levels=[]), "spec.levels", ""),
    Bad(
        "levels are at most eight",
        profile(levels=[_level(name=f"l{i}", keys=[f"k{i}"]) for i in range(9)]),
        "spec.levels",
        "",
    ),
    Bad("a level has keys", profile(levels=[_level(keys=[])]), "spec.levels[0].keys", ""),
    Bad("names differ", profile(levels=[_level(), _level(keys=["c"])]), "spec.levels", "two levels have one name"),
    Bad("keys differ over levels", profile(levels=[_level(), _level(name="rack")]), "spec.levels", "stands here twice"),
    Bad("keys differ in a level", profile(levels=[_level(keys=["a", "a"])]), "spec.levels", "stands here twice"),
    Bad(
        "a key is a label key",
        profile(levels=[_level(keys=["no key!"])]),
        "spec.levels[0].keys",
        "must be a node label key",
    ),
    Bad(
        "node is in every tree", profile(levels=[_level(name="node")]), "spec.levels[0].name", "is an end of every tree"
    ),
    Bad(
        "a level's name is a word",
        profile(levels=[_level(name="Leaf 1")]),
        "spec.levels[0].name",
        "is no name for a level",
    ),
    Bad("a link has a kind or a speed", profile(clusterLink={}), "spec.clusterLink", "give either the kind of a link"),
    Bad(
        "a link has not both",
        profile(clusterLink={"kind": "wan", "bytesPerSecond": 1}),
        "spec.clusterLink",
        "give either the kind of a link",
    ),
    Bad(
        "a kind brings its latency",
        profile(clusterLink={"kind": "wan", "latencySeconds": 1}),
        "spec.clusterLink.latencySeconds",
        "goes with bytesPerSecond",
    ),
    Bad(
        "a link has a speed above 0", profile(clusterLink={"bytesPerSecond": 0}), "spec.clusterLink.bytesPerSecond", ""
    ),
    Bad("missing labels are one of three", profile(missingLabels="Ignore"), "spec.missingLabels", ""),
]
