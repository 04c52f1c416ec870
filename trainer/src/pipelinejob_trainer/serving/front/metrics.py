"""What serving measures, in Prometheus' form: times that clients see, and what every stage does.

They are told by the front's /metrics, and among the first stage's own.
"""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipelinejob_trainer.serving.engine import Engine

_LABELS = ("namespace", "pipelinejob")
_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_NEXT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """The registry of one job's front."""

    def __init__(self, engine: Engine, *, namespace: str, job: str) -> None:
        self._registry = registry = CollectorRegistry()
        self._own = (namespace, job)
        registry.register(_OfEngine(engine, self._own))
        self._requests = Counter(
            "pipelinejob_serving_requests",
            "Requests by the status of their answer.",
            (*_LABELS, "status"),
            registry=registry,
        )
        self._prompt = self._counter("pipelinejob_serving_prompt_tokens", "Tokens of prompts, for each answer to them.")
        self._cached = self._counter(
            "pipelinejob_serving_cached_tokens", "Tokens of prompts that were found in the cache."
        )
        self._generated = self._counter("pipelinejob_serving_generated_tokens", "Tokens that were generated.")
        self._first = self._histogram(
            "pipelinejob_serving_time_to_first_token_seconds", "From request to first token.", _FIRST_S
        )
        self._next = self._histogram("pipelinejob_serving_time_per_token_seconds", "From a token to the next.", _NEXT_S)
        waits = self._histogram(
            "pipelinejob_serving_queue_wait_seconds", "From request to the first pass that computes of it.", _FIRST_S
        )
        engine.on_begun = waits.observe

    def _counter(self, name: str, help_: str) -> Counter:
        return Counter(name, help_, _LABELS, registry=self._registry).labels(*self._own)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help_, _LABELS, buckets=buckets, registry=self._registry).labels(*self._own)

    def count_request(self, status: int) -> None:
        """Count an answer; 499: the client left before it."""
        self._requests.labels(*self._own, str(status)).inc()

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

    def __init__(self, engine: Engine, own: tuple[str, str]) -> None:
        self._engine = engine
        self._own = own

    def collect(self) -> Iterator[Metric]:
        load = self._engine.load()
        for name, value, help_ in (
            ("pipelinejob_serving_requests_waiting", load.waiting, "Sequences in line."),
            ("pipelinejob_serving_requests_active", load.active, "Sequences in groups."),
            ("pipelinejob_serving_passes_flying", load.flying, "Passes on their way through the stages."),
            ("pipelinejob_serving_cache_blocks_used", load.blocks_owned, "Blocks of the cache that sequences own."),
            ("pipelinejob_serving_cache_blocks", load.blocks, "Blocks of the cache."),
            (
                "pipelinejob_serving_cache_usage",
                load.blocks_owned / load.blocks,
                "Share of the cache's blocks that sequences own, from 0 to 1.",
            ),
            ("pipelinejob_serving_block_tokens", load.block_tokens, "Tokens that a block of the cache holds."),
            ("pipelinejob_serving_group_size", load.group_size, "Sequences that a batch holds at most."),
            ("pipelinejob_serving_chains_formed", load.chains, "How often the chain of stages was formed."),
            ("pipelinejob_serving_ready", int(load.is_whole), "1 while all stages are there."),
        ):
            family = GaugeMetricFamily(name, help_, labels=_LABELS)
            family.add_metric(self._own, value)
            yield family
        yield from (self._idle(), self._costs(), *self._predicted(), *self._of_stages())

    def _idle(self) -> Metric:
        family = CounterMetricFamily(
            "pipelinejob_serving_idle_seconds",
            "Seconds that the first stage had nothing to compute: no request was there, stages were missing, or all"
            " tokens were on their way.",
            labels=(*_LABELS, "cause"),
        )
        for cause, seconds in self._engine.idle_s.items():
            family.add_metric((*self._own, cause), seconds)
        return family

    def _costs(self) -> Metric:
        """Return what predictions are made of, so that others can be made outside."""
        family = GaugeMetricFamily(
            "pipelinejob_serving_stage_cost_seconds",
            "What a pass costs a stage, as it measured before it served: fixed + rows * (row + held * past"
            " + token * new + attention * (2 * past * new + new ** 2)), for `new` tokens after `past` ones; and, on the"
            " straight lines between them, what a pass of `few_<n>` tokens takes beside that.",
            labels=(*_LABELS, "stage", "term"),
        )
        for stage, cost in enumerate(self._engine.costs()):
            few = {f"few_{tokens}": seconds for tokens, seconds in cost.few_s}
            for term, seconds in {**cost.model_dump(exclude={"few_s"}), **few}.items():
                family.add_metric((*self._own, str(stage), term.removesuffix("_s")), seconds)
        return family

    def _of_stages(self) -> tuple[Metric, ...]:
        families = tuple(
            CounterMetricFamily(name, help_, labels=(*_LABELS, "stage"))
            for name, help_ in (
                ("pipelinejob_serving_stage_passes", "Passes that a stage has worked through."),
                (
                    "pipelinejob_serving_stage_busy_seconds",
                    "Seconds that a stage worked on passes; its rate is its utilization.",
                ),
                ("pipelinejob_serving_stage_rows", "Sequences in a stage's passes; over passes, how full batches are."),
                ("pipelinejob_serving_stage_tokens", "Tokens in a stage's passes."),
            )
        )
        for stage, reading in sorted(self._engine.readings().items()):
            values: tuple[float, ...] = (reading.passes, reading.busy_s, reading.rows, reading.tokens)
            for family, amount in zip(families, values, strict=True):
                family.add_metric((*self._own, str(stage)), amount)
        return families

    def _predicted(self) -> tuple[Metric, ...]:
        families = tuple(
            GaugeMetricFamily(name, f"Predicted {what}", labels=(*_LABELS, "requests"))
            for name, what in (
                (
                    "pipelinejob_serving_predicted_time_to_first_token_seconds",
                    "mean seconds to the first token, of so many requests at once.",
                ),
                (
                    "pipelinejob_serving_predicted_time_per_token_seconds",
                    "mean seconds from a token to the next, of so many requests at once.",
                ),
                (
                    "pipelinejob_serving_predicted_tokens_per_second",
                    "tokens a second of so many requests at once, all together.",
                ),
            )
        )
        for found in self._engine.predictions():
            predicted = (found.first_token_s, found.per_token_s, found.tokens_per_s)
            for family, number in zip(families, predicted, strict=True):
                family.add_metric((*self._own, str(found.requests)), number)
        return (*families, self._predicted_utilization())

    def _predicted_utilization(self) -> Metric:
        family = GaugeMetricFamily(
            "pipelinejob_serving_predicted_stage_utilization",
            "Predicted share of the time that a stage works on passes, of so many requests at once.",
            labels=(*_LABELS, "stage", "requests"),
        )
        for found in self._engine.predictions():
            for stage, share in enumerate(found.utilization):
                family.add_metric((*self._own, str(stage), str(found.requests)), share)
        return family
