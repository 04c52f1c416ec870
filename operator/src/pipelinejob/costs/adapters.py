"""What low-rank adapters change in the counts of a decoder's layers: whose matrices are frozen, and what stands beside.

A frozen matrix needs no gradient, so that what it was multiplied with need not be kept for it; an
adapter of it keeps just that, and the few elements between its own two matrices. Targets are globs
over the names of modules, which a config does not say: matrices are known by the names that
transformers' Llama, its GPT-2 and the built-in families give them, and a target that fits none of
them counts as one that fits all.
"""

from dataclasses import replace

from pipelinejob.models.counts import FP32_BYTES, Batch, Count, count
from pipelinejob.models.decoder import Block, Branch, Decoder, Matrix, Role
from pipelinejob.spec.lora import ALL_MATRICES, Lora, matches

_NAMES: dict[Role, tuple[str, ...]] = {
    Role.QUERY: ("attention.query", "self_attn.q_proj"),
    Role.KEY: ("attention.key", "self_attn.k_proj"),
    Role.VALUE: ("attention.value", "self_attn.v_proj"),
    Role.OUT: ("attention.out", "attention_out", "self_attn.o_proj", "attn.c_proj"),
    Role.GATE: ("feed_forward.gate", "mlp.gate_proj"),
    Role.INTO: ("feed_forward.up", "feed_forward_in", "mlp.up_proj", "mlp.c_fc"),
    Role.BACK: ("feed_forward.out", "feed_forward_out", "mlp.down_proj", "mlp.c_proj"),
}
_FUSED_NAMES = ("qkv", "self_attn.qkv_proj", "attn.c_attn", "attention.query_key_value", "self_attn.Wqkv")
_FUSED_ROLES = (Role.QUERY, Role.KEY, Role.VALUE)
_MASK_BYTES = 1


def count_adapted(decoder: Decoder, batch: Batch, lora: Lora) -> tuple[Count, ...]:
    """Count embedding, blocks and head whose own parameters are frozen, with adapters in the blocks."""
    frozen = replace(batch, is_frozen=True)
    embedding, *blocks, head = count(decoder, frozen)
    received = batch.tokens * decoder.width * batch.element_bytes // batch.tensor  # for the table's gradient alone
    is_short = batch.element_bytes < FP32_BYTES
    table_bytes = (head.matrix_parameters * batch.element_bytes) if is_short and decoder.is_tied else 0
    tokens_bytes = embedding.between_bytes - embedding.output_bytes
    return (
        replace(
            _frozen(embedding, 0),
            activation_bytes=tokens_bytes,
            between_bytes=tokens_bytes,
            working_bytes=embedding.output_bytes
            + decoder.width * FP32_BYTES * min(decoder.positions, batch.sequence_length),
        ),
        *(
            _block(_frozen(counted, _saved(counted, batch)), block, _adapted(decoder, index, lora), frozen, lora)
            for index, (counted, block) in enumerate(zip(blocks, decoder.blocks, strict=True), start=1)
        ),
        replace(
            _frozen(head, 0 if decoder.is_tied else _saved(head, batch)),
            activation_bytes=head.activation_bytes - received + table_bytes,
            between_bytes=embedding.output_bytes,
        ),
    )


def _frozen(counted: Count, saved_bytes: int) -> Count:
    """Freeze all parameters of a layer."""
    return replace(
        counted,
        parameters=0,
        frozen_bytes=counted.parameters * FP32_BYTES - saved_bytes,
        hidden_parameters=0,
        factored=0,
        gram_operations=0.0,
        weight_products=0.0,
    )


def _saved(counted: Count, batch: Batch) -> int:
    """Return what is saved where frozen matrices are held as they are multiplied with, in bf16."""
    return counted.matrix_parameters * (FP32_BYTES - batch.element_bytes)


def _block(frozen: Count, block: Block, adapted: tuple[Matrix, ...], batch: Batch, lora: Lora) -> Count:
    n, element, tensor = batch.tokens, batch.element_bytes, batch.tensor
    kept = _kept_for(adapted)
    thinned = n * sum(each.used * each.inputs for each in adapted) if lora.dropout else 0
    inner = n * lora.rank * sum(each.used for each in adapted)
    given = n * sum(each.used * each.outputs for each in adapted)
    spared = n * (_kept_for_all(block) - (0 if lora.dropout else kept))
    kept_later = kept + max((each.inputs for each in adapted if each.role is Role.OUT), default=0)
    sides = [(each, each.inputs + each.outputs) for each in adapted]
    products = 2.0 * n * lora.rank * sum(each.used * side for each, side in sides) / tensor
    parameters = lora.rank * sum(each.copies * side for each, side in sides)
    return replace(
        frozen,
        parameters=parameters,
        hidden_parameters=parameters,
        factored=sum(each.copies * (side + 2 * lora.rank) for each, side in sides),
        products=frozen.products + products,
        weight_products=products,
        activation_bytes=frozen.activation_bytes
        + (inner - spared) * element // tensor
        + thinned * (element + _MASK_BYTES) // tensor,
        between_bytes=frozen.output_bytes + (2 * inner + given + (thinned or n * kept_later)) * element // tensor,
        working_bytes=frozen.working_bytes + n * max((each.outputs for each in adapted), default=0) * element // tensor,
    )


def _kept_for_all(block: Block) -> int:
    """Return the elements that a token's backward pass needs for the gradients of matrices alone.

    What attention returns, its own backward pass needs too.
    """
    return sum(branch.multiplied - _attended(branch) for branch in block)


def _attended(branch: Branch) -> int:
    return sum(each.inputs for each in branch.matrices if each.role is Role.OUT)


def _kept_for(adapted: tuple[Matrix, ...]) -> int:
    """Return the same for the matrices that have adapters; some read the same."""
    kept = 0
    for roles in (_FUSED_ROLES, (Role.GATE, Role.INTO), (Role.BACK,)):
        readers = [each.used * each.inputs for each in adapted if each.role in roles]
        kept += max(readers, default=0)
    return kept


def _adapted(decoder: Decoder, index: int, lora: Lora) -> tuple[Matrix, ...]:
    """Return the matrices of a block that targets name."""
    matrices = [each for branch in decoder.blocks[index - 1] for each in branch.matrices if each.role is not None]
    fused = _fused(matrices)
    return tuple(
        each
        for each in ([fused, *(m for m in matrices if m.role not in _FUSED_ROLES)] if decoder.is_fused else matrices)
        if each is not None and any(_names(pattern, each, index, is_fused=each is fused) for pattern in lora.targets)
    )


def _fused(matrices: list[Matrix]) -> Matrix | None:
    """Return queries, keys and values as one matrix."""
    parts = [each for each in matrices if each.role in _FUSED_ROLES]
    return replace(parts[0], outputs=sum(each.outputs for each in parts)) if parts else None


def _names(pattern: str, matrix: Matrix, index: int, *, is_fused: bool) -> bool:
    assert matrix.role is not None, "others have no adapters"
    names = _FUSED_NAMES if is_fused else _NAMES[matrix.role]
    return pattern == ALL_MATRICES or _fits(pattern, names, index) or not _is_known(pattern, index)


def _is_known(pattern: str, index: int) -> bool:
    """Return whether a pattern fits any known name, of this block or of another one."""
    names = (*_FUSED_NAMES, *(name for each in _NAMES.values() for name in each))
    return _fits(pattern, names, index) or pattern.startswith("layers.")


def _fits(pattern: str, names: tuple[str, ...], index: int) -> bool:
    return any(matches(pattern, f"layers.{index}.{name}") for name in names)
