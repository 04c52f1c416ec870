"""A new model family is a type of its sizes, a line, and a field; and in the trainer its layers, and a line.

Checks, counts, plans, profiles, runs and preflights take it up.
"""

import json
from pathlib import Path

import pytest

from support.copies.copied_sources import copied, insert, used

SIZES = """

class TallModel(BuiltIn):
    \"\"\"Twice as many blocks as it says, each of one head.\"\"\"

    pairs: Annotated[int, Field(ge=1, le=64, description="Pairs of blocks.")]
    width: Annotated[int, Field(ge=8, le=1024, description="Width of the residual stream.")]
    tie_embeddings: Annotated[bool, Field(description="One table.")] = False

    layers_cel = "pairs * 2 + 2"

    def decoder(self, sequence_length: int) -> Decoder:
        blocks = (biased_block(self.width, heads=1, inner=self.width),) * (2 * self.pairs)
        return Decoder(
            width=self.width, token_width=self.width, vocabulary=256, positions=sequence_length, blocks=blocks,
            head_vectors=2 * self.width, is_tied=self.tie_embeddings,
        )

    def shrunk(self) -> Self:
        return self.model_copy(update={"width": 8})


"""
LAYERS = """
from pipelinejob.spec.job import GptModel
from pipelinejob_trainer.models import gpt


def layer(model, index, sequence_length):
    return gpt.layer(_like(model), index, sequence_length)


def tied(model):
    return gpt.tied(_like(model))


def _like(model):
    sizes = {"hidden_size": model.width, "feed_forward_size": model.width, "tie_embeddings": model.tie_embeddings}
    return GptModel(num_layers=2 * model.pairs, num_heads=1, **sizes)
"""
FIELD = """    tall: Annotated[TallModel | None, Field(description="Tall.")] = None
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory):
    source = copied(tmp_path_factory.mktemp("copy"))
    spec: Path = source / "pipelinejob" / "spec"
    insert(spec / "families" / "built_in.py", SIZES, before="BUILT_IN: Mapping")
    insert(spec / "families" / "built_in.py", '"tall": TallModel, ', before='"gpt": GptModel, ')
    insert(spec / "workload.py", "TallModel, ", before="GptModel\n")
    insert(spec / "workload.py", FIELD, before="    gpt: Annotated[GptModel | None")
    models: Path = source / "pipelinejob_trainer" / "models"
    (models / "tall.py").write_text(LAYERS)
    insert(
        models / "families.py",
        "from pipelinejob_trainer.models import tall\n",
        before="from pipelinejob_trainer.models import",
    )
    insert(models / "families.py", '"tall": Family(tall.layer, tall.tied),\n    ', before='"gpt": Family(')
    return source


@pytest.fixture(scope="module")
def answers(source: Path):
    return json.loads(used(source, "tall.py"))


@pytest.fixture(scope="module")
def runs(source: Path):
    pytest.importorskip("torch")
    return json.loads(used(source, "tall_run.py").splitlines()[-1])


def test_it_is_accepted_and_its_mistakes_are_named(answers):
    assert answers["errors"] == []
    assert answers["errors_beside_gpt"] == ["spec.model"]
    assert answers["errors_with_too_many_stages"] == ["spec.parallelism.pipeline"]
    assert answers["errors_of_tying_with_pipedream"] == ["spec.model.tall.tieEmbeddings"]


def test_it_is_counted(answers):
    block = 4 * (16 * 16 + 16) + 2 * (16 * 16 + 16) + 4 * 16

    assert answers["parameters"] == 256 * 16 + 8 * 16 + 6 * block + 2 * 16 + 256 * 16
    assert answers["tied_bytes"] == 4 * 256 * 16


def test_it_is_planned(answers):
    assert answers["planned_layers"] == 6 + 2


def test_preflight_shrinks_it(answers):
    assert answers["shrunk"] == {"pairs": 3, "width": 8, "tieEmbeddings": False}


def test_it_is_run_and_is_the_same_model_split(runs):
    assert runs["worst_error"] < 2e-6
    assert runs["losses"] == pytest.approx(runs["losses_unsplit"], rel=2e-6)


def test_it_is_profiled(runs):
    assert runs["measured_parameters"] == runs["counted_parameters"]
    assert runs["measured_names"] == ["embedding", *(f"block-{i}" for i in range(6)), "head"]
    assert runs["seconds"] > 0


def test_preflight_plays_it(runs):
    assert runs["preflight"].startswith("preflight: one step's gradients agree with a single process's")
