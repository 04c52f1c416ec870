"""From what is wanted to pieces of text: checks against the model's limits, and the engine's tokens unfolded."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace

from pipelinejob.serving.passes import Sampled
from pipelinejob.serving.scheduler import Answer, Ending, Limits, Progress
from pipelinejob_trainer.serving.engine import Engine, Failed
from pipelinejob_trainer.serving.front.errors import (
    ApiError,
    full,
    lost_too_often,
    no_numbers,
    not_ready,
    too_slow,
    wrong,
)
from pipelinejob_trainer.serving.front.metrics import Metrics
from pipelinejob_trainer.serving.front.text import Tokenizer, Unfolding
from pipelinejob_trainer.serving.front.wanted import MOST_CHOICES, Wanted

_RETRY_S = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a token brought: text that can be told, and with `ending` the end of that choice."""

    index: int
    text: str
    sampled: Sampled
    ending: Ending | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Prompts as tokens, each answered `n` times by at most `max_new` tokens."""

    prompts: tuple[tuple[int, ...], ...]
    max_new: tuple[int, ...]
    wanted: Wanted

    @property
    def num_prompt_tokens(self) -> int:
        """Count the prompts' tokens."""
        return sum(map(len, self.prompts))


@dataclass(slots=True)
class Usage:
    """What an answer took; filled in as it grows."""

    generated: int = 0
    cached: int = 0


@dataclass(slots=True, kw_only=True)
class _Choice:
    answer: Answer
    text: Unfolding
    is_first: bool  # of those of its prompt
    is_open: bool = True
    cached_is_told: bool = False


class Answering:
    """Answers with one model.

    `positions` is how long a text may be by the model; None: nothing says. `timeout_s` None: a
    request may take as long as it takes.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        limits: Limits,
        metrics: Metrics,
        *,
        model: str,
        positions: int | None,
        timeout_s: float | None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.metrics = metrics
        self.model = model
        self.longest = min(limits.cache_tokens, positions or limits.cache_tokens)
        self._most = limits.groups * limits.group_size + limits.max_waiting
        self._timeout_s = timeout_s
        self._open = 0
        self._numbers = itertools.count(1)

    @property
    def num_open(self) -> int:
        """Count the choices that are in work or in line."""
        return self._open

    def prepare(self, wanted: Wanted) -> Prepared:
        """Turn texts into tokens, and check them. Raises ApiError."""
        if wanted.model != self.model:
            raise ApiError(
                404,
                f"model: there is no {wanted.model[:80]!r} here; use {self.model!r}",
                param="model",
                code="model_not_found",
            )
        if wanted.is_chat:
            prompts = [self.tokenizer.encode_chat(wanted.messages, wanted.tools, wanted.template)]
        else:
            prompts = [self.tokenizer.encode(each) if isinstance(each, str) else each for each in wanted.prompts]
        if len(prompts) * wanted.n > MOST_CHOICES:
            raise wrong(
                "n", f"{len(prompts)} prompts times {wanted.n} are more answers than the {MOST_CHOICES} allowed"
            )
        return Prepared(
            prompts=tuple(prompts), max_new=tuple(self._max_new(each, wanted) for each in prompts), wanted=wanted
        )

    def _max_new(self, prompt: Sequence[int], wanted: Wanted) -> int:
        param = "messages" if wanted.is_chat else "prompt"
        if not prompt:
            raise wrong(param, "has no tokens; send at least one")
        strange = next((each for each in prompt if not 0 <= each < self.tokenizer.size), None)
        if strange is not None:
            raise wrong(param, f"{strange} is no token of this model, whose tokens are 0 to {self.tokenizer.size - 1}")
        room = self.longest - len(prompt)
        if room < 1:
            raise ApiError(
                400,
                f"{param}: {len(prompt)} tokens leave no room for an answer in the {self.longest} that a text may have"
                " here; shorten it",
                param=param,
                code="context_length_exceeded",
            )
        if wanted.max_tokens is not None and wanted.max_tokens > room:
            raise ApiError(
                400,
                f"{wanted.max_tokens_field}: {wanted.max_tokens} tokens after a prompt of {len(prompt)} are more than"
                f" the {self.longest} that a text may have here; use at most {room}",
                param=wanted.max_tokens_field,
                code="context_length_exceeded",
            )
        return wanted.most_tokens(room)

    @contextlib.contextmanager
    def admitted(self, prepared: Prepared) -> Iterator[None]:
        """Take up room for a request. Raises ApiError where there is none."""
        if not self.engine.is_ready:
            missing = ", ".join(map(str, self.engine.load().missing))
            raise not_ready(f"stages {missing} are not there yet" if missing else "the server is not serving")
        count = len(prepared.prompts) * prepared.wanted.n
        if self._open + count > self._most:
            raise full(_RETRY_S)
        self._open += count
        try:
            yield
        finally:
            self._open -= count

    async def pieces(self, prepared: Prepared, usage: Usage, *, client: str) -> AsyncGenerator[Piece]:
        """Return the pieces of an admitted request as they come, of all its choices.

        Whoever stops early frees what it took. Raises ApiError where the answer is lost.
        """
        loop, said = asyncio.get_running_loop(), asyncio.Queue[Progress | Failed]()
        choices = self._choices(prepared, client)
        watches = {number: self.metrics.stopwatch() for number in choices}
        indices = {number: index for index, number in enumerate(choices)}

        def tell(each: Progress | Failed) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(said.put_nowait, each)

        try:
            for choice in choices.values():
                self.engine.submit(choice.answer, tell)
            self.metrics.count_prompt(prepared.num_prompt_tokens * prepared.wanted.n)
            async with _within(self._timeout_s):
                while any(choice.is_open for choice in choices.values()):
                    progress = await said.get()
                    if isinstance(progress, Failed):
                        raise (lost_too_often if progress.may_be_the_cause else not_ready)(
                            f"the answer was lost: {progress.reason}"
                        )
                    choice = choices[progress.sequence]
                    if choice.is_open:
                        watches[progress.sequence].token()
                        yield self._piece(indices[progress.sequence], choice, progress, usage)
        finally:
            for number, choice in choices.items():
                if choice.is_open:
                    self.engine.cancel(number)

    def _choices(self, prepared: Prepared, client: str) -> dict[int, _Choice]:
        wanted, choices = prepared.wanted, {}
        for prompt, max_new in zip(prepared.prompts, prepared.max_new, strict=True):
            for copy in range(wanted.n):
                answer = Answer(
                    number=next(self._numbers),
                    client=client,
                    prompt=prompt,
                    max_new=max_new,
                    sampling=replace(wanted.sampling, seed=(wanted.sampling.seed + copy) & (2**64 - 1)),
                    ends=frozenset() if wanted.ignore_eos else self.tokenizer.ends,
                )
                text = Unfolding(self.tokenizer, wanted.stop, after=() if wanted.is_chat else prompt)
                choices[answer.number] = _Choice(answer=answer, text=text, is_first=copy == 0)
        return choices

    def _piece(self, index: int, choice: _Choice, progress: Progress, usage: Usage) -> Piece:
        """Unfold a token. Raises ApiError where it means nothing."""
        if not progress.sampled.are_numbers:
            raise no_numbers()
        usage.generated += 1
        if not choice.cached_is_told:
            choice.cached_is_told = True
            usage.cached += choice.answer.cached if choice.is_first else 0  # a prompt counts once, as its tokens do
            self.metrics.count_cached(choice.answer.cached)
        ending = progress.ending
        text = "" if ending is Ending.STOP else choice.text.add(progress.sampled.token)
        if ending is not None:
            text += choice.text.end()
        if choice.text.is_stopped:
            if ending is None:
                self.engine.cancel(progress.sequence)
            ending = Ending.STOP
        choice.is_open = ending is None
        return Piece(index=index, text=text, sampled=progress.sampled, ending=ending)


class _within:  # noqa: N801 # reads as a verb where it is used
    """A time limit whose end is told as an ApiError."""

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s or 0.0
        self._timeout = asyncio.timeout(limit_s)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *raised: object) -> None:
        try:
            await self._timeout.__aexit__(*raised)  # type: ignore[arg-type] # as it was given
        except TimeoutError as error:
            raise too_slow(self._limit_s) from error
