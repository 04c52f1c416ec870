"""The branches that decoders are built of: attention, feed-forward layers, experts.

A block has them side by side, or one after another.

What each keeps for its backward pass assumes kernels as torch has them: attention that keeps no s
x s matrix, norms that keep their input (part of the stream) and their output (the input of the
matrices behind).
"""

from dataclasses import replace

from pipelinejob.models.decoder import Block, Branch, Matrix, Role


def attention(
    width: int,
    *,
    heads: int,
    kv_heads: int,
    head_size: int,
    has_bias: bool = False,
    has_output_bias: bool = False,
    has_head_norms: bool = False,
    vectors: int,
    window: int | None = None,
) -> Branch:
    """Return attention of heads that share keys and values in groups.

    `vectors` are the parameters of the norms around it; `has_head_norms` says that queries and
    keys are normed too.
    """
    query, other = heads * head_size, kv_heads * head_size
    return Branch(
        matrices=(
            Matrix(inputs=width, outputs=query, has_bias=has_bias, units=heads, role=Role.QUERY),
            Matrix(inputs=width, outputs=other, has_bias=has_bias, units=kv_heads, role=Role.KEY),
            Matrix(inputs=width, outputs=other, has_bias=has_bias, units=kv_heads, role=Role.VALUE),
            Matrix(inputs=query, outputs=width, has_bias=has_output_bias, units=heads, role=Role.OUT),
        ),
        vectors=vectors + 2 * head_size * has_head_norms,
        kept=width + 2 * query + 2 * other + (query + other) * has_head_norms,
        multiplied=width + query,
        score_width=2 * query,
        window=window,
    )


def equal_attention(width: int, *, heads: int, kv_heads: int | None = None, has_bias: bool) -> Branch:
    """Return attention behind a layer norm, whose heads share the width equally.

    Without `kv_heads` each has its own.

    A layer norm has two vectors. With `has_bias` every projection has one.
    """
    return attention(
        width,
        heads=heads,
        kv_heads=kv_heads or heads,
        head_size=width // heads,
        has_bias=has_bias,
        has_output_bias=has_bias,
        vectors=2 * width,
    )


def latent_attention(
    width: int,
    *,
    heads: int,
    query_rank: int | None,
    kv_rank: int,
    plain_size: int,
    rotary_size: int,
    value_size: int,
    has_bias: bool,
    vectors: int,
) -> Branch:
    """Return attention whose keys and values come from a shared latent vector (DeepSeek-V2, arXiv 2405.04434).

    What is projected down is small, and held whole by every GPU of a tensor group.
    """
    query = heads * (plain_size + rotary_size)
    key_and_value = heads * (plain_size + value_size)
    if query_rank is None:
        queries: tuple[Matrix, ...] = (Matrix(inputs=width, outputs=query, units=heads),)
    else:
        queries = (
            Matrix(inputs=width, outputs=query_rank, has_bias=has_bias, is_whole=True),
            Matrix(inputs=query_rank, outputs=query, units=heads),
        )
    latent = kv_rank + rotary_size
    return Branch(
        matrices=(
            *queries,
            Matrix(inputs=width, outputs=latent, has_bias=has_bias, is_whole=True),
            Matrix(inputs=kv_rank, outputs=key_and_value, units=heads),
            Matrix(inputs=heads * value_size, outputs=width, has_bias=has_bias, units=heads),
        ),
        vectors=vectors + (query_rank or 0) + kv_rank,
        # latent vectors before and after their norms; queries, keys with their rotary part,
        # values; what heads give
        kept=width + 2 * (query_rank or 0) + 2 * kv_rank + rotary_size + 2 * query + 2 * heads * value_size,
        multiplied=width + (query_rank or 0) + kv_rank + heads * value_size,
        score_width=query + heads * value_size,
    )


def feed_forward(width: int, inner: int, *, is_gated: bool, has_bias: bool = False, vectors: int) -> Branch:
    """Return a feed-forward layer.

    A gated one keeps gate, its activation, the other half, and the product of these.
    """
    return Branch(
        matrices=_inner_matrices(width, inner, is_gated=is_gated, has_bias=has_bias),
        vectors=vectors,
        kept=width + _inner_kept(inner, is_gated=is_gated),
        multiplied=width + inner,
    )


def experts(
    width: int, inner: int, *, num: int, used: int, shared: int = 0, has_shared_gate: bool = False, vectors: int
) -> Branch:
    """Return gated experts behind a router.

    Each token goes to some, and to one of inner size `shared` if there is one.

    Each expert receives a copy of the token; its output is kept until it is weighted.
    """
    gate = (Matrix(inputs=width, outputs=1, is_whole=True),) if has_shared_gate else ()
    return Branch(
        matrices=(
            Matrix(inputs=width, outputs=num, is_whole=True),
            *_inner_matrices(width, inner, is_gated=True, copies=num, used=used),
            *(_inner_matrices(width, shared, is_gated=True) if shared else ()),
            *gate,
        ),
        vectors=vectors,
        kept=width + num + used * (2 * width + _inner_kept(inner, is_gated=True)) + _inner_kept(shared, is_gated=True),
        multiplied=width + used * (width + inner) + shared,
        whole_kept=num + 2 * used * width,
        whole_multiplied=used * width,
    )


def parallel_block(one: Branch, other: Branch, *, norms: int = 1) -> Block:
    """Return a block whose two branches read the same stream and are added to it together.

    One norm can serve both.
    """
    shared = one.matrices[0].inputs if norms == 1 else 0
    return (
        Branch(
            matrices=one.matrices + other.matrices,
            vectors=one.vectors + other.vectors,
            kept=one.kept + other.kept - shared,
            multiplied=one.multiplied + other.multiplied - shared,
            score_width=one.score_width,
            window=one.window,
        ),
    )


def biased_block(width: int, *, heads: int, inner: int, has_bias: bool = True) -> Block:
    """Return GPT-2's block: attention, then a feed-forward layer, each behind a layer norm, which has two vectors."""
    return (
        equal_attention(width, heads=heads, has_bias=has_bias),
        feed_forward(width, inner, is_gated=False, has_bias=has_bias, vectors=2 * width),
    )


def normed_after(branch: Branch, width: int) -> Branch:
    """Return a branch whose output is normed before it is added to the stream.

    That norm keeps what it received.
    """
    return replace(branch, vectors=branch.vectors + width, kept=branch.kept + width)


def _inner_matrices(
    width: int, inner: int, *, is_gated: bool, has_bias: bool = False, copies: int = 1, used: int = 1
) -> tuple[Matrix, ...]:
    into = Matrix(inputs=width, outputs=inner, has_bias=has_bias, copies=copies, used=used, units=inner, role=Role.INTO)
    back = replace(into, inputs=inner, outputs=width, role=Role.BACK)
    return (*((replace(into, role=Role.GATE),) if is_gated else ()), into, back)


def _inner_kept(inner: int, *, is_gated: bool) -> int:
    return inner * (4 if is_gated else 2)
