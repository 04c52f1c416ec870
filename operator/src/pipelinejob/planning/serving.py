"""What a job that serves will give, and hold, before anything ran: its passes counted, and played by its scheduler."""

from collections.abc import Iterator, Sequence

from pipelinejob.base.timeline import Span, SpanKind, StageTimeline, Timeline
from pipelinejob.contract.plan import CostSource, ServedAt, StagePlan
from pipelinejob.costs.layers import Profile, analytic_profile
from pipelinejob.models.counts import FP32_BYTES
from pipelinejob.models.decoder import Branch, Role
from pipelinejob.serving.chunks import PassCost, explained
from pipelinejob.serving.predict import Asked, Worked, examples, played
from pipelinejob.serving.scheduler import Limits
from pipelinejob.spec.job import PipelineJobSpec
from pipelinejob.spec.serving import Serving, Split

_DRAWN = Asked(prompt=16, new=6)  # short, so that a picture of all their passes can be read


def as_served(serving: Serving, profile: Profile) -> Profile:
    """Return the costs by which the layers of a job that serves are shared among its stages.

    Where chunks of prompts are to take each as long, the head counts with the one token that it
    computes of a chunk.
    """
    if serving.split is Split.TOKENS or profile.source is CostSource.EQUAL:
        return profile
    *layers, head = profile.layers
    share = 1 / serving.chunk_tokens
    parts = ("forward_s", "backward_input_s", "backward_weight_s")
    less = head.model_copy(update={part: share * getattr(head, part) for part in parts})
    return profile.model_copy(update={"layers": (*layers, less)})


def foretold(spec: PipelineJobSpec, stages: Sequence[StagePlan], profile: Profile) -> tuple[ServedAt, ...]:
    """Return what the stages of a job that serves will give at some loads.

    Of layers that count as equal only the utilization means anything.
    """
    limits, costs = _limits(spec, stages), _costs(spec, stages, profile)
    return examples(limits, costs, link_s=_link_s(profile), processors=profile.concurrency)


def foretold_timeline(spec: PipelineJobSpec, stages: Sequence[StagePlan], profile: Profile) -> Timeline:
    """Return the passes of a request for each group, all at once, of few tokens.

    A pass of a group's tokens is a forward span of chunk 0, whose micro-batch is the group; a
    piece of a prompt is one of chunk 1, and its micro-batch the request.
    """
    limits, costs = _limits(spec, stages), _costs(spec, stages, profile)
    tokens = max(1, min(_DRAWN.prompt, limits.cache_tokens // 2))
    asked = [Asked(prompt=tokens, new=min(_DRAWN.new, limits.cache_tokens - tokens))] * limits.groups
    works = played(asked, limits, costs, link_s=_link_s(profile), processors=profile.concurrency)
    end_s = max(stage[-1].end_s for stage in works)
    return Timeline(
        source="predicted",
        stages=tuple(
            StageTimeline(stage=number, step=0, spans=tuple(_spans(worked, end_s)))
            for number, worked in enumerate(works)
        ),
    )


def _spans(worked: Sequence[Worked], end_s: float) -> Iterator[Span]:
    before_s = 0.0
    for each in worked:
        if each.start_s > before_s:
            yield Span(kind=SpanKind.IDLE, start_s=before_s, end_s=each.start_s)
        is_prompt = each.group is None
        number = each.request if each.group is None else each.group
        yield Span(
            kind=SpanKind.FORWARD, start_s=each.start_s, end_s=each.end_s, micro_batch=number, chunk=int(is_prompt)
        )
        before_s = each.end_s
    if end_s > before_s:
        yield Span(kind=SpanKind.IDLE, start_s=before_s, end_s=end_s)


def _limits(spec: PipelineJobSpec, stages: Sequence[StagePlan]) -> Limits:
    assert spec.serving is not None, "a job that serves"
    return Limits.of(spec.serving, num_stages=len(stages))


def _costs(spec: PipelineJobSpec, stages: Sequence[StagePlan], profile: Profile) -> tuple[PassCost, ...]:
    if profile.source is CostSource.EQUAL:
        return tuple(PassCost(fixed_s=each.forward_s, token_s=0.0) for each in stages)
    return _counted(spec, stages, _limits(spec, stages))


def _link_s(profile: Profile) -> float:
    return 0.0 if profile.source is CostSource.EQUAL else profile.link_s


def held_bytes(spec: PipelineJobSpec, stage: StagePlan) -> int:
    """Return what a stage that serves holds: its parameters, and keys and values of `cacheTokens` tokens.

    Of layers of which only the number is known it is the parameters as planned.
    """
    assert spec.serving is not None, "a job that serves"
    decoder = spec.model.layer_sizes(spec.data.sequence_length)
    if decoder is None:
        return stage.parameter_bytes
    held = {index for first, end in stage.chunks for index in range(first, end)}
    blocks = [block for index, block in enumerate(decoder.blocks, start=1) if index in held]
    width = sum(_cached_width(branch) for block in blocks for branch in block)
    return stage.parameter_bytes + spec.serving.cache_tokens * width * FP32_BYTES


def _cached_width(branch: Branch) -> int:
    """Count the elements of keys and values that a token leaves in the cache."""
    by_role = sum(each.outputs for each in branch.matrices if each.role in {Role.KEY, Role.VALUE})
    return by_role or branch.score_width


def _counted(spec: PipelineJobSpec, stages: Sequence[StagePlan], limits: Limits) -> tuple[PassCost, ...]:
    """Return each stage's cost, of the four passes that it measures before it serves, here counted.

    As fast as its chunk is planned to be, on its device and by its profile.
    """
    chunk, rows = max(2, limits.chunk_tokens), max(2, limits.group_size)
    one, many = _seconds(spec, rows=1, new=1), _seconds(spec, rows=rows, new=1)
    if limits.batch_invariant:  # they are computed one by one
        many = tuple(rows * each for each in one)
    first, both = _seconds(spec, rows=1, new=chunk), _seconds(spec, rows=1, new=2 * chunk)
    *blocks, whole_head = _seconds(spec, rows=1, new=limits.chunk_tokens)
    by_prompts = spec.serving is not None and spec.serving.split is Split.PROMPTS
    planned = (*blocks, whole_head / limits.chunk_tokens if by_prompts else whole_head)

    def cost(stage: StagePlan) -> PassCost:
        held = [index for begin, end in stage.chunks for index in range(begin, end)]
        pace = stage.forward_s / sum(planned[index] for index in held)
        head = len(one) - 1  # computes a chunk's last token alone

        def took(seconds: Sequence[float]) -> float:
            return pace * sum(one[index] if index == head else seconds[index] for index in held)

        of_many = took(many) + (pace * (many[head] - one[head]) if head in held else 0.0)
        return explained(took(one), of_many, took(first), took(both) - took(first), rows=rows, chunk=chunk)

    return tuple(map(cost, stages))


def _seconds(spec: PipelineJobSpec, *, rows: int, new: int) -> tuple[float, ...]:
    """Return the forward seconds of each layer, for so many rows of so many tokens."""
    counted = analytic_profile(
        spec.model,
        spec.data.model_copy(update={"sequence_length": new}),
        spec.schedule.model_copy(update={"micro_batch_size": rows}),
        spec.training,
        device=spec.device,
    )
    return tuple(each.forward_s for each in counted.layers)
