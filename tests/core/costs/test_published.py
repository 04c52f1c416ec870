"""Plans of runs that were published take as long as those did, with one constant a device: what its products attain.

Narayanan et al. 2021 (arXiv 2104.04473) trained on A100s of 80 GB, eight a node, NVLink 3 and a
port of 200 Gb/s each, with all activations recomputed and equally many blocks to a stretch. Table
1 gives throughputs of ten models, table 2 those of two larger ones at three sizes of cluster each.
Their operations count attention in full and the forward pass of blocks twice (appendix, eq. 3);
micro-batch sizes and stretches of layers are those of the scripts that the authors published with
the paper.

Llama 3 405B (arXiv 2407.21783, table 4) was trained on H100s, tensor groups of 8, 16 stages, with
the embedding and the head alone on their stretches (section 3.3.2); that the others have one layer
each is our reading.
"""

from typing import NamedTuple

import pytest

from pipelinejob.costs.layers import analytic_profile
from pipelinejob.planning.planner import make_plan
from pipelinejob.spec.job import Model, PipelineJobSpec

VOCABULARY, SEQUENCE = 51_200, 2048


def plan_of(
    *,
    model,
    sequence,
    tensor,
    pipeline,
    data,
    micro_batches,
    micro_batch_size,
    product,
    layers,
    is_sequence_parallel=False,
    **others,
):
    """Plan for devices whose memory is no bound: the papers recompute layer by layer and shard their optimiser."""
    chunks = len(layers) // pipeline
    manifest = {
        "model": model,
        "data": {"corpus": "python-stdlib", "sequenceLength": sequence},
        "parallelism": {"pipeline": pipeline, "data": data, "tensor": tensor},
        "schedule": {
            "name": "1F1B" if chunks == 1 else "Interleaved1F1B",
            **({} if chunks == 1 else {"virtualStages": chunks}),
            "microBatches": micro_batches,
            "microBatchSize": micro_batch_size,
            **others,
        },
        "partition": {"layers": layers},
        "training": {"steps": 1, "precision": "bf16"},
    }
    spec = PipelineJobSpec.model_validate(manifest)
    profile = analytic_profile(
        spec.model,
        spec.data,
        spec.schedule,
        spec.training,
        device=spec.device,
        product=product,
        tensor=tensor,
        is_sequence_parallel=is_sequence_parallel,
    )
    unbounded = profile.model_copy(update={"device_memory_bytes": None})
    return make_plan(namespace="team", name="job", spec=spec, profile=unbounded)


def megatron_flops(run):
    attention, head = SEQUENCE / (6 * run.width), VOCABULARY / (16 * run.layers * run.width)
    return 96 * run.batch * SEQUENCE * run.layers * run.width**2 * (1 + attention + head)


class Run(NamedTuple):
    name: str
    heads: int
    width: int
    layers: int
    tensor: int
    pipeline: int
    gpus: int
    batch: int
    micro_batch: int
    stretch: int | None  # layers of each, where a stage has several
    published: int  # Tflop/s of each GPU


MEGATRON = (  # table 1, from 1.7 billion parameters to a trillion
    Run("1.7B", 24, 2304, 24, 1, 1, 32, 512, 16, None, 137),
    Run("3.6B", 32, 3072, 30, 2, 1, 64, 512, 16, None, 138),
    Run("7.5B", 32, 4096, 36, 4, 1, 128, 512, 16, None, 142),
    Run("18.4B", 48, 6144, 40, 8, 1, 256, 1024, 8, None, 135),
    Run("39.1B", 64, 8192, 48, 8, 2, 512, 1536, 4, None, 138),
    Run("76.1B", 80, 10240, 60, 8, 4, 1024, 1792, 2, 5, 140),
    Run("145.6B", 96, 12288, 80, 8, 8, 1536, 2304, 2, 5, 148),
    Run("310.1B", 128, 16384, 96, 8, 16, 1920, 2160, 1, 3, 155),
    Run("529.6B", 128, 20480, 105, 8, 35, 2520, 2520, 1, 1, 163),
    Run("1008B", 160, 25600, 128, 8, 64, 3072, 3072, 1, None, 163),
    # table 2
    Run("174.6B on 384", 96, 12288, 96, 8, 12, 384, 1536, 1, None, 153),
    Run("174.6B on 768", 96, 12288, 96, 8, 12, 768, 1536, 1, None, 149),
    Run("174.6B on 1536", 96, 12288, 96, 8, 12, 1536, 1536, 1, None, 141),
    Run("529.6B on 560", 128, 20480, 105, 8, 35, 560, 2240, 1, None, 171),
    Run("529.6B on 1120", 128, 20480, 105, 8, 35, 1120, 2240, 1, None, 167),
    Run("529.6B on 2240", 128, 20480, 105, 8, 35, 2240, 2240, 1, None, 159),
)


@pytest.mark.parametrize("run", [pytest.param(run, id=run.name) for run in MEGATRON])
def test_megatrons_throughput_is_predicted_within_15_percent(run):
    gpt = {"numLayers": run.layers, "hiddenSize": run.width, "numHeads": run.heads, "vocabularySize": VOCABULARY}
    data = run.gpus // (run.tensor * run.pipeline)
    stretch = run.stretch or run.layers // run.pipeline
    stretches = [stretch] * (run.layers // stretch)
    stretches[0] += 1  # the embedding
    stretches[-1] += 1  # the head

    plan = plan_of(
        model={"gpt": gpt | {"dropout": 0.1, "tieEmbeddings": True}},
        sequence=SEQUENCE,
        tensor=run.tensor,
        pipeline=run.pipeline,
        data=data,
        micro_batches=run.batch // (data * run.micro_batch),
        micro_batch_size=run.micro_batch,
        product="NVIDIA-A100-SXM4-80GB",
        layers=stretches,
        recompute=True,
    )

    predicted = megatron_flops(run) / plan.prediction.step_s / run.gpus / 1e12
    print(f"{run.published} published, {predicted:.0f} predicted: {predicted / run.published - 1:+.1%}")
    assert predicted == pytest.approx(run.published, rel=0.15)


LLAMA_3_405B = {
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(("gpus", "sequences", "published"), [(8192, 32, 430), (16384, 16, 400)])
def test_llama_3s_throughput_is_predicted_within_15_percent(gpus, sequences, published):
    model = Model.of_config(LLAMA_3_405B)

    plan = plan_of(
        model=model.dump(),
        sequence=8192,
        tensor=8,
        pipeline=16,
        data=gpus // (8 * 16),
        micro_batches=sequences,
        micro_batch_size=1,
        product="NVIDIA-H100-80GB-HBM3",
        layers=[1] * (16 * 8),
        is_sequence_parallel=True,
    )

    # 6 operations a parameter and token, and 12 for each element of attention's scores, by layer
    operations = 6 * 405_853_388_800 + 12 * 126 * 16384 * 8192
    predicted = plan.prediction.tokens_per_s * operations / gpus / 1e12
    print(f"{published} published, {predicted:.0f} predicted: {predicted / published - 1:+.1%}")
    assert predicted == pytest.approx(published, rel=0.15)
