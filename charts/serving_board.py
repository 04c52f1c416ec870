"""The dashboard of jobs that serve: what clients see, how full the stages are, and what they wait for."""

from grafana_foundation_sdk.builders import dashboard

from panels import WINDOW, Chart, Row, build, choice, middle_and_slowest

JOB = 'namespace=~"$namespace", pipelinejob=~"$pipelinejob"'
BY_JOB = "by (namespace, pipelinejob)"
BY_STAGE = "by (namespace, pipelinejob, stage)"
STAGE = "{{pipelinejob}}: stage {{stage}}"


def rate(metric: str, by: str = BY_JOB, selector: str = JOB) -> str:
    """Return the rate of a counter."""
    return f"sum {by} (rate({metric}{{{selector}}}[{WINDOW}]))"


def both(metric: str) -> dict[str, str]:
    """Return the lines of a histogram's median and of its slowest hundredth, job by job."""
    return middle_and_slowest(metric, JOB, "namespace, pipelinejob, le", of="{{pipelinejob}}: ")


def foretold(metric: str) -> dict[str, str]:
    """Return the lines of what was predicted, one for each number of requests at once."""
    by = BY_JOB.replace(")", ", requests)")
    return {
        "{{pipelinejob}}: {{requests}} at once (predicted)": f"max {by} (pipelinejob_serving_predicted_{metric}{{{JOB}}})"
    }


def newest(metric: str) -> str:
    """Return a gauge, job by job."""
    return f"max {BY_JOB} ({metric}{{{JOB}}})"


BUSY = rate("pipelinejob_serving_stage_busy_seconds_total", BY_STAGE)
ROWS = f"{rate('pipelinejob_serving_stage_rows_total')} / ({rate('pipelinejob_serving_stage_passes_total')} > 0)"


def idle(cause: str) -> str:
    """Return the share of the time that the first stage had nothing to compute for a cause."""
    return rate("pipelinejob_serving_idle_seconds_total", selector=f'{JOB}, cause="{cause}"')


CLIENTS = Row(
    title="What clients see",
    lines=(
        (
            Chart(
                title="Time to first token",
                unit="s",
                sentence="From a request to its first token, waiting in line included (measured); in dashes the mean of so many at once, predicted before it served.",
                queries=both("pipelinejob_serving_time_to_first_token_seconds")
                | foretold("time_to_first_token_seconds"),
            ),
            Chart(
                title="Time per token",
                unit="s",
                sentence="From a token to the next of the same answer (measured); in dashes the mean of so many at once, predicted before it served.",
                queries=both("pipelinejob_serving_time_per_token_seconds") | foretold("time_per_token_seconds"),
            ),
            Chart(
                title="Waiting in line",
                unit="s",
                sentence="From a request to the first pass that computes of it (measured).",
                queries=both("pipelinejob_serving_queue_wait_seconds"),
            ),
        ),
        (
            Chart(
                title="Tokens a second",
                unit="short",
                sentence="Tokens generated each second, all answers together (measured); in dashes those of so many at once, predicted before it served.",
                queries={"{{pipelinejob}}": rate("pipelinejob_serving_generated_tokens_total")}
                | foretold("tokens_per_second"),
            ),
            Chart(
                title="Tokens of prompts a second",
                unit="short",
                sentence="Tokens of the prompts that came, and those of them that the cache already held (measured).",
                queries={
                    "{{pipelinejob}}: all": rate("pipelinejob_serving_prompt_tokens_total"),
                    "{{pipelinejob}}: cached": rate("pipelinejob_serving_cached_tokens_total"),
                },
            ),
            Chart(
                title="Answers by status",
                unit="reqps",
                sentence="Answers each second by HTTP status; 429 is a full line, 499 a client that left (measured).",
                queries={
                    "{{pipelinejob}}: {{status}}": rate(
                        "pipelinejob_serving_requests_total", "by (namespace, pipelinejob, status)"
                    )
                },
            ),
        ),
    ),
)
ROOM = Row(
    title="How full it is",
    lines=(
        (
            Chart(
                title="Answers in work and in line",
                unit="short",
                sentence="Answers that are in groups, and those that wait for room (measured).",
                queries={
                    "{{pipelinejob}}: in work": newest("pipelinejob_serving_requests_active"),
                    "{{pipelinejob}}: in line": newest("pipelinejob_serving_requests_waiting"),
                },
            ),
            Chart(
                title="Fill of batches",
                unit="percentunit",
                full=1.0,
                sentence="Answers in a pass over those that a batch holds; chunks of prompts count as one (measured).",
                queries={"{{pipelinejob}}": f"({ROWS}) / {newest('pipelinejob_serving_group_size')}"},
            ),
            Chart(
                title="Use of the cache",
                unit="percentunit",
                full=1.0,
                sentence="Blocks of keys and values that answers own, of all (measured).",
                queries={
                    "{{pipelinejob}}": (
                        f"{newest('pipelinejob_serving_cache_blocks_used')} / {newest('pipelinejob_serving_cache_blocks')}"
                    )
                },
            ),
        ),
    ),
)
STAGES = Row(
    title="Stages: $pipelinejob",
    repeated_for="pipelinejob",
    lines=(
        (
            Chart(
                title="Utilization of each stage",
                unit="percentunit",
                full=1.0,
                sentence="Share of the time that a stage computes (measured); in dashes with 16 requests at once, predicted before it served.",
                queries={
                    STAGE: BUSY,
                    f"{STAGE} (predicted)": f'max {BY_STAGE} (pipelinejob_serving_predicted_stage_utilization{{{JOB}, requests="16"}})',
                },
            ),
            Chart(
                title="Waiting of each stage for other stages",
                unit="percentunit",
                full=1.0,
                sentence="Share of the time that a stage neither computes nor lacks requests or stages: passes are elsewhere (measured).",
                queries={
                    STAGE: (
                        f"clamp_min(1 - {BUSY} - on (namespace, pipelinejob) group_left ()"
                        f" ({idle('no requests')} + {idle('missing stages')}), 0)"
                    )
                },
            ),
            Chart(
                title="Why the first stage is idle",
                unit="percentunit",
                kind="stacked",
                full=1.0,
                sentence="Share of its time without anything to compute: no requests, missing stages, or all tokens on their way (measured).",
                queries={
                    "{{pipelinejob}}: {{cause}}": rate(
                        "pipelinejob_serving_idle_seconds_total", "by (namespace, pipelinejob, cause)"
                    )
                },
            ),
        ),
    ),
)


def board() -> dashboard.Dashboard:
    """Build the dashboard; one namespace is chosen in it, and any number of the jobs there."""
    every = "label_values(pipelinejob_serving_ready"
    namespace = choice("namespace", "Namespace", f"{every}, namespace)").multi(False)
    jobs = choice("pipelinejob", "PipelineJob", f'{every}{{namespace=~"$namespace"}}, pipelinejob)')
    return build("PipelineJob serving", "pipelinejob-serving", (CLIENTS, ROOM, STAGES), variables=(namespace, jobs))
