"""What a decoder's layers do and keep for one micro-batch: operations, bytes, and what groups of ranks exchange.

Everything is of one GPU of a tensor group, the busiest. n tokens of sequences of s; h is the
stream's width.

Operations. A product of n tokens with a matrix of k parameters takes 2nk; attention's scores and
its mixing of values take 2ns for each element of the heads' keys and values (Narayanan et al.
2021, arXiv 2104.04473, appendix).

Memory. Korthikanti et al. 2022 (arXiv 2205.05198, section 4) count 34sbh + 5as^2b bytes a block;
without dropout, with attention that keeps no s x s matrix, a block of GPT-2 keeps 8nh + 2nf
elements, f being the feed-forward layer's width, and two nh of them (the stream, as both norms
receive it) are fp32 always. Dropout adds a mask of one byte an element: one for each branch, and
the embedding's. Between the halves of a split backward pass stays what gradients of parameters are
made of: what matrices are multiplied with and the gradients of what that gives, and the same of
norms. While a pass lasts, it holds gradients on their way too. tests/trainer/models/test_counts.py
compares all that with the trainer's memory.

Tensor parallelism. Matrices are divided by heads, columns or rows; with it goes sequence
parallelism (the same paper, section 4.2.2): what lies between matrices is divided by tokens, and
each branch gathers its input and scatters its sum, at the cost of one all-reduce there and one on
the way back. The paper's keep their part of that input alone and gather it again on the way back;
here it is kept as it was gathered.

Expert parallelism. Replicas divide a block's experts, and a token travels to each expert that it
meets, and back, there and on the way back. Where each expert is met by as many, every replica
works on as many copies of tokens as it would alone, and sends all but its own share. How a router
truly chooses is data's; that all replicas together send as many as counted holds whatever it is,
up to what stays.
"""

from dataclasses import dataclass, replace

from pipelinejob.models.decoder import Block, Decoder, Matrix

FP32_BYTES = 4
BF16_BYTES = 2
_MASK_BYTES = 1
_BRANCH_MASKS = 2  # of what attention and feed-forward layer add, side by side or not
_FUSED = 3  # matrices of queries, keys and values
_NORMS_HOLD = 2  # streams each, for the gradients of its parameters: what it received, the gradient of what it gave
_NUMBER_BYTES = 8
_TOKEN_BYTES = _NUMBER_BYTES  # a token's number, as torch's look-up wants it


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is counted for: a micro-batch of `tokens` in sequences, and how it is worked through.

    Arithmetic is of `element_bytes`, `tensor` GPUs share each layer, each holds one of so many
    `stream_parts` of what that leaves whole, and backward passes may come in halves.
    """

    tokens: int
    sequence_length: int
    element_bytes: int
    tensor: int = 1
    stream_parts: int = 1
    expert: int = 1  # replicas that divide experts
    is_split: bool = False
    is_frozen: bool = False  # matrices need no gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What one GPU does and keeps for one micro-batch of a layer.

    Operations are of a forward pass: `products` with matrices of parameters, whose gradients by
    input and by weight take as many again each, and `scores`, products of two activations, whose
    two gradients are both by input. Of the `collectives` on the way forward, and as many on the
    way back, each moves `gathered_bytes`, the whole group's. Of tokens that meet all experts
    alike, `exchanged_bytes` are sent to other replicas to meet theirs, and as many back, on the
    way forward as on the way back; before, each is told how many come, in `announced_bytes`. Of
    the parameters, `expert_parameters` are those of experts that replicas divide;
    `hidden_parameters` are matrices between embedding and head; `factored` is what is left of all
    if only rows and columns of matrices are counted; and to make hidden matrices orthogonal takes
    `gram_operations` an iteration.
    """

    parameters: int
    frozen_bytes: int = 0  # of parameters beside those, which have neither gradients nor moments
    matrix_parameters: int  # those that are multiplied with, and so are there in the arithmetic's precision too
    products: float
    weight_products: float | None = None  # for gradients by weight, where these are not as many again
    scores: float = 0.0
    is_lookup: bool = False  # has no gradient by input
    activation_bytes: int  # kept from the forward to the backward pass
    between_bytes: int  # kept between the halves of a split backward pass
    working_bytes: int  # on its way while a pass lasts
    output_bytes: int
    collectives: int = 0
    gathered_bytes: int = 0
    exchanged_bytes: int = 0
    announced_bytes: int = 0
    expert_parameters: int = 0
    hidden_parameters: int = 0
    factored: int
    gram_operations: float = 0.0


def count(decoder: Decoder, batch: Batch) -> tuple[Count, ...]:
    """Count embedding, blocks and head."""
    known: dict[int, Count] = {}
    for block in decoder.blocks:
        if id(block) not in known:  # alike blocks are one object
            known[id(block)] = _block(block, decoder, batch)
    return (_embedding(decoder, batch), *(known[id(block)] for block in decoder.blocks), _head(decoder, batch))


def _stream_bytes(decoder: Decoder, batch: Batch) -> int:
    """Return the residual stream's size; it stays fp32 under autocast, between stages too."""
    return batch.tokens * decoder.width * FP32_BYTES // batch.stream_parts


def _mask_bytes(decoder: Decoder, batch: Batch) -> int:
    return batch.tokens * decoder.width * _MASK_BYTES // batch.stream_parts if decoder.has_dropout else 0


def _embedding(decoder: Decoder, batch: Batch) -> Count:
    """Count the embedding: the tables of tokens and of positions.

    Each GPU of a group looks up in its part of the vocabulary; the results are added up.
    """
    table = -(-decoder.vocabulary // batch.tensor) * decoder.token_width
    tokens_bytes = batch.tokens * _TOKEN_BYTES
    stream_bytes = _stream_bytes(decoder, batch)
    return Count(
        parameters=decoder.embedding_parameters - decoder.table_parameters + table,
        matrix_parameters=decoder.projection,
        products=batch.tokens * (decoder.width + 2 * decoder.projection) / batch.tensor,
        is_lookup=True,
        factored=_factored(table // decoder.token_width, decoder.token_width)
        + (_factored(decoder.positions, decoder.width) if decoder.positions else 0)
        + _projected(decoder)
        + decoder.embedding_vectors,
        activation_bytes=tokens_bytes + _mask_bytes(decoder, batch),
        between_bytes=tokens_bytes + stream_bytes,
        working_bytes=stream_bytes + max(stream_bytes, FP32_BYTES * table),
        output_bytes=stream_bytes,
        collectives=1,
        gathered_bytes=batch.tokens * decoder.width * FP32_BYTES,
    )


def _block(block: Block, decoder: Decoder, batch: Batch) -> Count:
    n, element, tensor = batch.tokens, batch.element_bytes, batch.tensor
    matrices = [(matrix, matrix.share(tensor)) for branch in block for matrix in branch.matrices]
    multiplied = round(sum(matrix.held(tensor, batch.expert) for matrix, _ in matrices))
    whole = sum(branch.matrices[0].inputs for branch in block)
    kept = _divided(sum(branch.kept for branch in block), whole + sum(each.whole_kept for each in block), batch)
    multiplied_with = _divided(
        sum(branch.multiplied for branch in block), whole + sum(each.whole_multiplied for each in block), batch
    )
    given = sum(_given(matrix, batch) for matrix, _ in matrices)  # gradients that the second half multiplies with
    stream_bytes, mask_bytes = _stream_bytes(decoder, batch), _mask_bytes(decoder, batch)
    kept_bytes = len(block) * stream_bytes + n * kept * element + _BRANCH_MASKS * mask_bytes
    counted = Count(
        parameters=multiplied + sum(branch.vectors for branch in block),
        matrix_parameters=multiplied,
        products=n * sum(matrix.products * share for matrix, share in matrices),
        scores=sum(_scores(branch.score_width, branch.window, batch) for branch in block),
        hidden_parameters=round(sum(each.inputs * each.outputs * share for each, share in matrices if _is_flat(each))),
        factored=sum(
            each.copies_on(batch.expert) * (_factored(each.inputs, each.outputs) + each.has_bias * each.outputs)
            for each, _ in matrices
        )
        + sum(branch.vectors for branch in block),
        gram_operations=sum(
            _gram_operations(each.inputs, each.outputs) * share for each, share in matrices if _is_flat(each)
        ),
        activation_bytes=kept_bytes,
        between_bytes=_NORMS_HOLD * len(block) * stream_bytes + n * (multiplied_with + given) * element,
        working_bytes=_working_bytes(block, decoder, batch, kept=kept_bytes),
        output_bytes=stream_bytes,
        collectives=2 * len(block),
        gathered_bytes=n * decoder.width * element,
    )
    return counted if batch.expert == 1 else _dividing_experts(counted, block, decoder, batch)


def _dividing_experts(counted: Count, block: Block, decoder: Decoder, batch: Batch) -> Count:
    """Add to a block's count what is exchanged where replicas divide its experts."""
    experts = [matrix for branch in block for matrix in branch.matrices if matrix.is_experts]
    if not experts:
        return counted
    away = batch.expert - 1
    copies_bytes = batch.tokens * experts[0].used * decoder.width * batch.element_bytes
    return replace(
        counted,
        exchanged_bytes=copies_bytes * away // batch.expert,
        announced_bytes=experts[0].copies * _NUMBER_BYTES * away // batch.expert,
        expert_parameters=round(sum(each.held(batch.tensor, batch.expert) for each in experts)),
    )


def _divided(elements: int, whole: int, batch: Batch) -> int:
    """Return a GPU's of a token's elements, of which some are there on all of them."""
    return whole + -(-(elements - whole) // batch.tensor)


def _taken(matrix: Matrix, batch: Batch) -> int:
    """Return the elements of a token that a GPU multiplies with a matrix."""
    return matrix.used * -(-matrix.inputs // (batch.tensor if matrix.is_last else 1))


def _given(matrix: Matrix, batch: Batch) -> int:
    """Return the elements of a token that a GPU gets of a matrix."""
    is_streams = matrix.is_last or matrix.is_whole
    return matrix.used * -(-matrix.outputs // (1 if is_streams else batch.tensor))


def _is_flat(matrix: Matrix) -> bool:
    """Return whether it is a matrix by itself; experts' lie in one block of three dimensions."""
    return matrix.copies == 1


def _factored(rows: int, columns: int) -> int:
    return rows + columns


def _projected(decoder: Decoder) -> int:
    return _factored(decoder.token_width, decoder.width) if decoder.projection else 0


def _gram_operations(rows: int, columns: int) -> float:
    """Return those of one iteration of Newton and Schulz: X X', its square, and that times X."""
    short, long = sorted((rows, columns))
    return 4 * short**2 * long + 2 * short**3


def _working_bytes(block: Block, decoder: Decoder, batch: Batch, *, kept: int) -> int:
    """Return what a block's backward pass, or a half of it, holds beside the bytes that are kept.

    A matrix's gradient is whole before it is added to what other micro-batches gave. The last
    matrices' comes while all else is kept, that of the first ones, of queries, keys and values
    together, when only their input is left of it.
    """
    n, element = batch.tokens, batch.element_bytes
    stream_bytes, cast_bytes = _stream_bytes(decoder, batch), _cast_bytes(decoder, batch)
    first, last = block[0].matrices, block[-1].matrices
    outputs = [_given(matrix, batch) for branch in block for matrix in branch.matrices]
    first_gradient = _gradient_bytes(sum(each.inputs * each.outputs for each in first[:_FUSED]), batch)
    if batch.is_split:
        gathered = (2 + len(block)) * stream_bytes + 2 * cast_bytes + n * sum(outputs) * element
        return max(gathered, first_gradient, *(_gradient_bytes(each.inputs * each.outputs, batch) for each in last))
    at_last = (
        stream_bytes
        + cast_bytes
        + max(n * _taken(each, batch) * element + _gradient_bytes(each.inputs * each.outputs, batch) for each in last)
    )
    at_activation = stream_bytes + cast_bytes + 2 * n * max(outputs) * element if cast_bytes else 0
    left = stream_bytes + n * first[0].inputs * element
    at_first = 3 * stream_bytes + n * sum(outputs[:_FUSED]) * element + first_gradient - (kept - left)
    return max(at_last, at_activation, at_first)


def _cast_bytes(decoder: Decoder, batch: Batch) -> int:
    """Return the size of the stream's copy in the arithmetic's precision.

    0 where it has that already.
    """
    is_cast = batch.element_bytes < FP32_BYTES
    return batch.tokens * decoder.width * batch.element_bytes * is_cast // batch.stream_parts


def _gradient_bytes(elements: int, batch: Batch) -> int:
    """Return the size of a matrix's gradient, as it comes and as it is added up."""
    if batch.is_frozen:
        return 0
    is_cast = batch.element_bytes < FP32_BYTES
    return elements * (FP32_BYTES + batch.element_bytes * is_cast) // batch.tensor


def _scores(width: int, window: int | None, batch: Batch) -> float:
    keys = min(batch.sequence_length, window or batch.sequence_length)
    return 2 * batch.tokens * keys * width / batch.tensor


def _head(decoder: Decoder, batch: Batch) -> Count:
    """Count the last norm, the product with the vocabulary, and the loss, which keeps fp32 log-probabilities."""
    n, element, tensor = batch.tokens, batch.element_bytes, batch.tensor
    columns = -(-decoder.vocabulary // tensor)
    table = columns * (decoder.token_width + decoder.has_head_bias)
    received = n * (decoder.width + (decoder.token_width if decoder.projection else 0)) * element
    logits_bytes, loss_bytes = n * columns * element, n * columns * FP32_BYTES
    stream_bytes = _stream_bytes(decoder, batch)
    return Count(
        parameters=decoder.head_vectors + decoder.projection + table,
        matrix_parameters=decoder.projection + columns * decoder.token_width,
        products=2 * n * (columns * decoder.token_width + decoder.projection / tensor),
        factored=decoder.head_vectors
        + _projected(decoder)
        + _factored(columns, decoder.token_width)
        + decoder.has_head_bias * columns,
        activation_bytes=stream_bytes + received + loss_bytes,
        between_bytes=_NORMS_HOLD * stream_bytes + received + logits_bytes,
        working_bytes=max(2 * loss_bytes, stream_bytes + _gradient_bytes(table * tensor, batch)),
        output_bytes=logits_bytes,
        collectives=1,
        gathered_bytes=n * decoder.width * element,
    )
