"""What goes between layers may be any nesting of tensors: one message, its gradients another, as in one process."""

import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.nesting_models import Box, Pair
from pipelinejob.schedules.names import ScheduleName
from pipelinejob.spec.job import Model
from pipelinejob_trainer.base.errors import LayerError
from pipelinejob_trainer.base.nesting import (
    NestingError,
    as_json,
    described,
    difference,
    flatten,
    from_json,
    parcel,
    paths,
    unflatten,
)
from pipelinejob_trainer.communication.agreement import ParcelSpec
from pipelinejob_trainer.communication.links import Links
from pipelinejob_trainer.communication.packing import Layout, TensorSpec
from pipelinejob_trainer.data.micro_batch import MicroBatch
from pipelinejob_trainer.models.losses.loss import cross_entropy
from support.examples import examples
from support.training.pipelines import (
    Job,
    evaluate_threads,
    evaluate_unsplit,
    make_rank,
    merged,
    run_gloo,
    run_steps,
    run_threads,
    run_unsplit,
)
from support.training.tagless_links import TIMEOUT_S, links_without_tags

CPU = torch.device("cpu")
SCHEDULES = (ScheduleName.ONE_F_ONE_B, ScheduleName.INTERLEAVED, ScheduleName.ZB_H1, ScheduleName.DUALPIPE_V)
BOUND = 1e-5  # of a gradient's largest entry: a tensor in several places is added up in another order

TENSORS = st.sampled_from(
    [
        torch.arange(6.0).view(2, 3),
        torch.arange(6.0).view(2, 3).t(),
        torch.ones(1, 4).expand(3, 4),
        torch.complex(torch.ones(2), torch.arange(2.0)).conj(),
        torch.complex(torch.ones(2, 1), torch.arange(2.0).view(2, 1)).conj().imag,
        torch.tensor(3, dtype=torch.int16),
        torch.tensor([True, False]),
        torch.empty(0, 5),
        torch.ones(3, dtype=torch.bfloat16),
    ]
)
CONSTANTS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
NESTINGS = st.recursive(
    TENSORS | CONSTANTS,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inside, max_size=3)
        | st.dictionaries(st.text(max_size=3), inside, max_size=3).map(OrderedDict)
        | st.builds(Pair, inside, inside)
        | st.builds(Box, inside)
    ),
    max_leaves=10,
)


@given(NESTINGS)
def test_a_nesting_is_the_same_after_its_way(value: Any) -> None:
    structure, leaves = flatten(value)
    spec = ParcelSpec.read(ParcelSpec.of(parcel(structure, leaves, [False] * len(leaves))).written())
    arrived = spec.opened(spec.packed(parcel(structure, leaves, [False] * len(leaves)), CPU), is_gradient=False)

    same, its_leaves = flatten(unflatten(arrived.structure, arrived.leaves))
    assert same == structure == from_json(json.loads(json.dumps(as_json(structure))))
    for mine, other in zip(leaves, its_leaves, strict=True):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        assert torch.equal(mine.resolve_conj(), other)


def test_tensors_of_one_buffer_are_changed_each_by_itself() -> None:
    tensors = [torch.ones(3), torch.zeros(2, dtype=torch.int64)]
    layout = Layout.of([TensorSpec.of(each) for each in tensors])

    one, other = layout.opened(layout.packed(tensors, CPU))
    version = other._version
    one.add_(1)

    assert other._version == version
    assert (one.tolist(), other.tolist()) == ([2, 2, 2], [0, 0])
    assert other.data_ptr() - one.data_ptr() == 64


def test_a_tensor_in_two_places_is_one() -> None:
    x = torch.ones(2)
    structure, leaves = flatten({"x": x, "again": [x]})

    assert len(leaves) == 1
    assert paths(structure) == {0: 'output["x"]'}
    whole = unflatten(structure, leaves)
    assert whole["x"] is whole["again"][0]


@pytest.mark.parametrize(
    ("now", "before", "sentence"),
    [
        ({"a": [torch.ones(1), None]}, {"a": [None, None]}, 'output["a"][0] is a tensor where it was None'),
        ([1], [True], "output[0] is 1 where it was True"),
        ((torch.ones(1),), [torch.ones(1)], "output is tuple of 1 where it was list of 1"),
        ({"b": 1, "a": 1}, {"a": 1, "b": 1}, "output has the keys b, a where it had the keys a, b"),
        (Pair(1, [2]), Pair(1, [3]), "output.other[0] is 2 where it was 3"),
    ],
)
def test_a_difference_is_told_by_its_path(now: Any, before: Any, sentence: str) -> None:
    assert difference(flatten(now)[0], flatten(before)[0]) == sentence
    assert difference(flatten(now)[0], flatten(now)[0]) is None


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"a": [object()]}, r'^output\["a"\]\[0\] is builtins.object; between layers go tensors, and tuples'),
        ({1: torch.ones(1)}, r"^output has the key 1, a int; keys must be str"),
        ((torch.ones(2).to_sparse(),), r"^output\[0\] is a tensor that is torch.sparse_coo; give a dense one"),
        ([torch.ones(1, device="meta")], r"^output\[0\] is a tensor that is on the meta device"),
    ],
)
def test_what_no_border_can_carry_is_named_by_its_path(value: Any, sentence: str) -> None:
    with pytest.raises(NestingError, match=sentence):
        flatten(value)


def test_a_nesting_is_described_by_its_tensors() -> None:
    assert described({"x": torch.ones(2, 3), "rest": (torch.ones(1, dtype=torch.bool), None)}) == (
        'dict (["x"]: float32 of shape (2, 3), ["rest"][0]: bool of shape (1,))'
    )


@st.composite
def jobs(draw: st.DrawFn, text: Path) -> Job:
    depth = draw(st.integers(4, 7))
    arguments = {"seed": str(draw(st.integers(0, 10_000))), "depth": str(depth)}
    schedule = draw(st.sampled_from(SCHEDULES))
    return Job(
        text=text,
        model=Model(entrypoint="layers.nesting_models:stirring", num_layers=depth, arguments=arguments),
        schedule=schedule,
        stages=2 if schedule in {ScheduleName.INTERLEAVED, ScheduleName.DUALPIPE_V} else draw(st.integers(1, 4)),
        unequal_rows=(2, 2, 2, 1) if draw(st.booleans()) else None,
        micro_batches=4,
        sequence_length=6,
        replicas=draw(st.sampled_from([1, 1, 2])),
        recompute=draw(st.sampled_from([False, 1, True])),
        steps=1,
    )


def test_random_nestings_train_as_in_one_process(text: Path) -> None:
    @settings(max_examples=examples(15), deadline=None)
    @given(job=jobs(text))
    def holds(job: Job) -> None:
        whole, split = run_unsplit(job), run_threads(job, evaluate_between=True)

        assert split.losses == pytest.approx(whole.losses, rel=1e-6)
        assert split.gradients.keys() == whole.gradients.keys()
        for name, gradient in whole.gradients.items():
            error = float((split.gradients[name] - gradient).abs().max())
            assert error <= BOUND * float(gradient.abs().max()), f"{name} differs by {error}"

    holds()


def test_nestings_are_evaluated_as_in_one_process(text: Path) -> None:
    model = Model(entrypoint="layers.nesting_models:stirring", num_layers=5, arguments={"seed": "3", "depth": "5"})
    job = Job(text=text, model=model, stages=3, sequence_length=6)

    losses, left = evaluate_threads(job)

    assert losses == pytest.approx(evaluate_unsplit(job))
    assert left == {"in flight": 0, "gradients": 0, "training": True}


@pytest.mark.parametrize("schedule", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_V])
@pytest.mark.parametrize("seed", ["1", "2"])
def test_nestings_go_over_links_in_the_senders_order(text: Path, schedule: ScheduleName, seed: str) -> None:
    model = Model(entrypoint="layers.nesting_models:stirring", num_layers=6, arguments={"seed": seed, "depth": "6"})
    job = Job(text=text, model=model, stages=3, schedule=schedule, sequence_length=6, unequal_rows=(2, 1, 2, 2, 1, 2))

    outcomes, errors = played(job)

    assert errors == []
    whole, split = run_unsplit(job), merged(outcomes)
    assert split.losses == pytest.approx(whole.losses, rel=1e-6)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(split.gradients[name], gradient, rtol=1e-4, atol=1e-6)


def played(job: Job) -> tuple[list[Any], list[BaseException]]:
    """Train by links that know no tags; give outcomes, and what was raised first."""
    ranks = [make_rank(job, rank=rank, links=links) for rank, links in enumerate(links_without_tags(job))]
    barrier, outcomes, errors = threading.Barrier(job.stages), {}, []

    def work(rank: int) -> None:
        try:
            outcomes[rank] = run_steps(job, ranks[rank], barrier=lambda: barrier.wait(TIMEOUT_S), evaluate_between=True)
        except Exception as error:  # noqa: BLE001 # handed to the test, whatever it is
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(job.stages)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not errors:
        threads[0].join(0.05)
    return [outcomes[rank] for rank in sorted(outcomes)], errors[:1]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            "changing_structure",
            r'layer 1 \(Does\), .*: output\["mask"\] is a tensor where it was None; .* an empty tens',
        ),
        ("changing_constant", r"layer 1 \(Does\), .*: output\[1\] is \d where it was \d; .* into a tensor"),
        (
            "changing_shape",
            r'layer 1 \(Does\), .*: output\["far"\]\[0\] is .*\(2, 6, 8\) where it was .*\(2, 5, 8\); .*pad',
        ),
        ("changing_gradient", r"layer 1 \(Does\), .*output\[1\] requires a gradient where it did not"),
        ("strange_key", r"layer 1 \(Does\) returned dict: output has the key 3, a int; keys must be str"),
        ("local_class", r"layer 1 \(Does\), output holds a .*Local, which the next stage cannot find"),
        ("views_changed_in_place", r"output\[2\], which this stage was given, was changed in place; it uses memory of"),
    ],
)
def test_what_differs_from_one_process_is_refused_with_layer_and_path(text: Path, function: str, sentence: str) -> None:
    model = Model(entrypoint=f"layers.nesting_models:{function}", num_layers=4)
    job = Job(text=text, model=model, stages=2, micro_batches=3, sequence_length=8, steps=1)
    ranks = [make_rank(job, rank=rank, links=links) for rank, links in enumerate(links_without_tags(job))]

    with pytest.raises(LayerError, match=sentence) as caught:
        raise_first(ranks)

    assert caught.value.reason in {"BadModel", "ChangedInPlace"}


def raise_first(ranks: list[Any]) -> None:
    """Run a step; raise what the first rank raised, of which the others only learn after a time."""
    errors: list[BaseException] = []

    def work(rank: Any) -> None:
        try:
            rank.runtime.run_step(1)
        except Exception as error:  # noqa: BLE001 # of a rank that waits in vain, too
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not errors:
        threads[0].join(0.05)
    if errors:
        raise errors[0]


def test_only_what_needs_a_gradient_gets_one_and_each_way_is_one_message(text: Path) -> None:
    model = Model(entrypoint="layers.nesting_models:masked", num_layers=4)
    job = Job(text=text, model=model, stages=2, micro_batches=3, sequence_length=16, steps=1)
    links = links_without_tags(job)
    raise_first([make_rank(job, rank=rank, links=each) for rank, each in enumerate(links)])

    stream, mask = 2 * 16 * 8 * 4, 2 * 16 * 8
    assert links[0].bytes_sent == links[1].bytes_received == 3 * (stream + mask)
    assert links[1].bytes_sent == links[0].bytes_received == 3 * stream


def test_nestings_go_over_gloo(text: Path) -> None:
    model = Model(entrypoint="layers.nesting_models:stirring", num_layers=5, arguments={"seed": "4", "depth": "5"})
    rows = (2, 2, 2, 2, 2, 1)
    job = Job(text=text, model=model, stages=2, schedule=ScheduleName.ZB_V, sequence_length=6, unequal_rows=rows)

    whole, split = run_unsplit(job), run_gloo(job)

    assert split.losses == pytest.approx(whole.losses, rel=1e-6)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(split.gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", [ScheduleName.ONE_F_ONE_B, ScheduleName.ZB_H1])
def test_what_an_encoder_keeps_skips_to_its_decoder_over_four_stages(text: Path, schedule: ScheduleName) -> None:
    model = Model(entrypoint="own_skips:layers", num_layers=8, arguments={"width": "8", "depth": "3"})
    job = Job(text=text, model=model, stages=4, schedule=schedule, micro_batches=5, steps=1)

    whole, split = run_unsplit(job), run_threads(job)

    assert split.losses == whole.losses
    assert all(torch.equal(split.gradients[name], each) for name, each in whole.gradients.items())


class _WithPositions:
    """Batches of two documents a sequence."""

    def __init__(self, job: Job) -> None:
        self._data = job.dataset()

    def batch(self, step: int, replica: int, micro_batch: int) -> MicroBatch:
        read = self._data.batch(step, replica, micro_batch)
        places = torch.cat([torch.arange(9), torch.arange(7)]).expand(read.tokens.shape)
        return read._replace(positions=places)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_first_layer_that_asks_for_positions_gets_them(text: Path, recompute: bool) -> None:
    model = Model(entrypoint="layers.nesting_models:with_positions", num_layers=3)
    job = Job(text=text, model=model, stages=1, micro_batches=1, sequence_length=16, steps=1, recompute=recompute)
    rank, batches = make_rank(job, rank=0, links=Links()), _WithPositions(job)
    first, second, head = (layer.module for layer in make_rank(job, rank=0, links=Links()).part.layers)
    read = batches.batch(1, 0, 0)

    loss = rank.runtime.run_step(1, batches).loss_sum
    alone = rank.runtime.run_step(1).loss_sum

    for found, places in ((loss, read.positions), (alone, None)):
        logits = head(second(first(read.tokens, positions=places)))
        assert float(found) == float(cross_entropy(logits, read.targets).detach())
