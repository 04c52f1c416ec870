"""What docs/topology.md shows is what is read."""

import re
from pathlib import Path

from pipelinejob.fabric import synthetic as fabric
from pipelinejob.fabric.topology import PROFILES
from pipelinejob_operator.validation.manifest_files import load_manifests
from pipelinejob_operator.validation.topology_profiles import validate_profile

PAGE = (Path(__file__).parents[3] / "docs" / "topology.md").read_text(encoding="utf-8")
BLOCKS = [load_manifests(text)[0] for text in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)]


def test_the_page_shows_a_good_profile():
    (manifest,) = (block for block in BLOCKS if block.get("kind") == "TopologyProfile")

    name, spec = validate_profile(manifest)

    assert name == "our-cluster"
    assert [level.name for level in spec.levels] == ["superpod", "leaf", "rack"]


def test_the_page_shows_a_fabric_of_512_nodes():
    (description,) = (block for block in BLOCKS if "groups" in block)

    assert len(fabric.read(description).nodes) == 512


def test_the_page_lists_every_preset_with_its_levels():
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| ([^|]+) \|", PAGE, flags=re.MULTILINE))
    presets = {name: ", ".join(level.name for level in levels) for name, levels in PROFILES.items()}

    assert {name: rows[name] for name in presets if name in rows} == presets
