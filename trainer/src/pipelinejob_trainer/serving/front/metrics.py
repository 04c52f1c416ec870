"""What serving measures, in Prometheus' form: times that clients see, and what every stage does."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipelinejob_trainer.serving.engine import Engine

_PREFIX = "pipelinejob_serving"
_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_NEXT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """The registry of one front."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_OfEngine(engine))
        own = self._registry
        self._requests = Counter(
            f"{_PREFIX}_requests", "Requests by the status of their answer.", ["status"], registry=own
        )
        self._prompt = Counter(f"{_PREFIX}_prompt_tokens", "Tokens of prompts.", registry=own)
        self._cached = Counter(
            f"{_PREFIX}_cached_tokens", "Tokens of prompts that were found in the cache.", registry=own
        )
        self._generated = Counter(f"{_PREFIX}_generated_tokens", "Tokens that were generated.", registry=own)
        self._first = Histogram(
            f"{_PREFIX}_time_to_first_token_seconds", "From request to first token.", buckets=_FIRST_S, registry=own
        )
        self._next = Histogram(
            f"{_PREFIX}_time_per_token_seconds", "From a token to the next.", buckets=_NEXT_S, registry=own
        )

    def count_request(self, status: int) -> None:
        """Count an answer; 499: the client left before it."""
        self._requests.labels(str(status)).inc()

    def count_prompt(self, tokens: int) -> None:
        """Count a prompt that is computed."""
        self._prompt.inc(tokens)

    def count_cached(self, tokens: int) -> None:
        """Count the tokens of a prompt that needed not be computed."""
        self._cached.inc(tokens)

    def stopwatch(self) -> "Stopwatch":
        """Return what measures one answer, from now on."""
        return Stopwatch(self._first, self._next, self._generated)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text form."""
        return generate_latest(self._registry)


class Stopwatch:
    """Measures the tokens of one answer."""

    def __init__(self, first: Histogram, following: Histogram, generated: Counter) -> None:
        self._first, self._next, self._generated = first, following, generated
        self._last = time.perf_counter()
        self._is_first = True

    def token(self) -> None:
        """Note that a token is there."""
        now = time.perf_counter()
        (self._first if self._is_first else self._next).observe(now - self._last)
        self._generated.inc()
        self._last, self._is_first = now, False


class _OfEngine(Collector):
    """What the engine says of itself when it is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        load = self._engine.load()
        for name, value, help_ in (
            ("requests_waiting", load.waiting, "Sequences in line."),
            ("requests_active", load.active, "Sequences in groups."),
            ("passes_flying", load.flying, "Passes on their way through the stages."),
            ("cache_blocks_used", load.blocks_owned, "Blocks of the cache that sequences own."),
            ("cache_blocks", load.blocks, "Blocks of the cache."),
            ("chains_formed", load.chains, "How often the chain of stages was formed."),
            ("ready", int(load.is_whole), "1 while all stages are there."),
        ):
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", help_, value)
        yield from self._predicted()
        families = [
            CounterMetricFamily(f"{_PREFIX}_stage_{name}", help_, labels=["stage"])
            for name, help_ in (
                ("passes", "Passes that a stage has worked through."),
                ("busy_seconds", "Seconds that a stage worked on passes; its rate is its utilization."),
                ("rows", "Sequences in a stage's passes; over passes, how full batches are."),
                ("tokens", "Tokens in a stage's passes."),
            )
        ]
        for stage, reading in sorted(self._engine.readings().items()):
            values: tuple[float, ...] = (reading.passes, reading.busy_s, reading.rows, reading.tokens)
            for of_stage, amount in zip(families, values, strict=True):
                of_stage.add_metric([str(stage)], amount)
        yield from families

    def _predicted(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(f"{_PREFIX}_predicted_{name}", f"Predicted {what}", labels=["requests"])
            for name, what in (
                ("time_to_first_token_seconds", "mean seconds to the first token, of so many requests at once."),
                ("time_per_token_seconds", "mean seconds from a token to the next, of so many requests at once."),
                ("tokens_per_second", "tokens a second of so many requests at once, all together."),
            )
        }
        for found in self._engine.predictions():
            predicted = (found.first_token_s, found.per_token_s, found.tokens_per_s)
            for family, number in zip(families.values(), predicted, strict=True):
                family.add_metric([str(found.requests)], number)
        yield from families.values()
