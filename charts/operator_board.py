"""The dashboard of the operator: all jobs together, the line, and the controller at work.

Its metrics have controller-runtime's names, which every controller exports: each expression says
which one it means.
"""

from grafana_foundation_sdk.builders import dashboard

from panels import WINDOW, Chart, Row, build, middle_and_slowest, quantile

CONTROLLER = 'controller="pipelinejob"'
QUEUE = 'name="pipelinejob"'
LEASE = 'name="pipelinejob-operator"'
# Requests carry no controller's name: they are counted where the operator's lease is told of as
# well.
OF_OPERATOR = f"and on (job, instance) leader_election_master_status{{{LEASE}}}"


def of_requests(histogram: str) -> str:
    """Return the query for the 99th percentile of a histogram of the operator's requests, by verb."""
    return f"histogram_quantile(0.99, sum by (le, verb) (rate({histogram}_bucket[{WINDOW}]) {OF_OPERATOR}))"


JOBS = Row(
    title="Jobs",
    lines=(
        (
            Chart(
                title="Jobs by condition",
                unit="short",
                sentence="PipelineJobs whose condition is True; a job is counted under each that is.",
                queries={"{{type}}": 'sum by (type) (pipelinejob_status_condition{status="True"})'},
            ),
            Chart(
                title="Restarts",
                unit="short",
                sentence="Gangs started again in the last hour, by namespace.",
                queries={"{{namespace}}": "sum by (namespace) (increase(pipelinejob_restarts_total[1h]))"},
            ),
        ),
        (
            Chart(
                title="Jobs without a place, by reason",
                unit="short",
                kind="stacked",
                sentence="Why jobs are not placed: no room, not their turn, room that could never be, quota.",
                queries={"{{reason}}": "sum by (reason) (pipelinejob_waiting_reason)"},
            ),
            Chart(
                title="What places cost",
                unit="percentunit",
                sentence="Predicted share of a step that crossings cost, the mean over jobs and the worst of them.",
                queries={
                    "mean (predicted)": "avg(pipelinejob_placement_penalty_ratio)",
                    "worst (predicted)": "max(pipelinejob_placement_penalty_ratio)",
                },
            ),
        ),
    ),
)
ADMISSION = Row(
    title="Line",
    lines=(
        (
            Chart(
                title="Jobs in line",
                unit="short",
                sentence="Jobs that wait for room.",
                queries={"waiting": "max(pipelinejob_operator_admission_waiting)"},
            ),
            Chart(
                title="Age of the line's head",
                unit="s",
                sentence="How long the first job of the line has waited; it grows while no room comes free for it.",
                queries={"head": "max(pipelinejob_operator_queue_age_seconds)"},
            ),
            Chart(
                title="Attempts",
                unit="ops",
                kind="stacked",
                sentence="Jobs that admission looked at each second, by what came of it.",
                queries={
                    "{{result}}": f"sum by (result) (rate(pipelinejob_operator_admission_attempts_total[{WINDOW}]))"
                },
            ),
        ),
        (
            Chart(
                title="Jobs admitted",
                unit="ops",
                sentence="Jobs that were given room, each second.",
                queries={"admitted": f"sum(rate(pipelinejob_operator_admission_admitted_total[{WINDOW}]))"},
            ),
            Chart(
                title="Time of a cycle",
                unit="s",
                sentence="How long admission takes to work the line off once: median and 99th percentile.",
                queries=middle_and_slowest("pipelinejob_operator_admission_cycle_seconds"),
            ),
        ),
    ),
)
AT_WORK = Row(
    title="Controller",
    lines=(
        (
            Chart(
                title="Reconciles",
                unit="ops",
                sentence="Passes each second, by result.",
                queries={
                    "{{result}}": f"sum by (result) (rate(controller_runtime_reconcile_total{{{CONTROLLER}}}[{WINDOW}]))"
                },
            ),
            Chart(
                title="Time of a reconcile",
                unit="s",
                sentence="99th percentile of one pass.",
                queries={"99th percentile": quantile(0.99, "controller_runtime_reconcile_time_seconds", CONTROLLER)},
            ),
            Chart(
                title="Passes in work",
                unit="s",
                sentence="Seconds that passes in work have taken: all of them added up, and the longest.",
                queries={
                    "all": f"sum(workqueue_unfinished_work_seconds{{{QUEUE}}})",
                    "longest": f"max(workqueue_longest_running_processor_seconds{{{QUEUE}}})",
                },
            ),
        ),
        (
            Chart(
                title="Queue",
                unit="short",
                sentence="Jobs that wait for a pass.",
                queries={"depth": f"sum(workqueue_depth{{{QUEUE}}})"},
            ),
            Chart(
                title="Time in the queue",
                unit="s",
                sentence="How long a job waits for its pass: median and 99th percentile.",
                queries=middle_and_slowest("workqueue_queue_duration_seconds", QUEUE),
            ),
            Chart(
                title="Passes asked for",
                unit="ops",
                sentence="By anybody, each second, and of these by failures.",
                queries={
                    "all": f"sum(rate(workqueue_adds_total{{{QUEUE}}}[{WINDOW}]))",
                    "failures": f"sum(rate(workqueue_retries_total{{{QUEUE}}}[{WINDOW}]))",
                },
            ),
        ),
    ),
)
API_SERVER = Row(
    title="API server",
    lines=(
        (
            Chart(
                title="API requests",
                unit="reqps",
                sentence="Requests of the operator to the API server each second, by answer.",
                queries={
                    "{{method}} {{code}}": (
                        f"sum by (method, code) (rate(rest_client_requests_total[{WINDOW}]) {OF_OPERATOR})"
                    ),
                },
            ),
            Chart(
                title="Time of a request",
                unit="s",
                sentence="99th percentile of the time until the API server answers.",
                queries={"{{verb}}": of_requests("rest_client_request_duration_seconds")},
            ),
        ),
        (
            Chart(
                title="Wait for a turn",
                unit="s",
                sentence="99th percentile of what requests wait in the operator: for the rate, or as the API server asked.",
                queries={"{{verb}}": of_requests("rest_client_rate_limiter_duration_seconds")},
            ),
            Chart(
                title="Requests turned away",
                unit="reqps",
                sentence="Requests sent again each second because an overloaded API server said when to.",
                queries={
                    "{{verb}} {{code}}": (
                        f"sum by (verb, code) (rate(rest_client_request_retries_total[{WINDOW}]) {OF_OPERATOR})"
                    ),
                },
            ),
            Chart(
                title="Watch restarts",
                unit="short",
                sentence="Times the supervised watch was started again after a fault, in the last hour.",
                queries={"restarts": "sum(increase(pipelinejob_operator_watch_restarts_total[1h])) or vector(0)"},
            ),
        ),
    ),
)
PROCESS = Row(
    title="Process",
    lines=(
        (
            Chart(
                title="Event loop lag",
                unit="s",
                sentence="How late the event loop wakes a task: 99th percentile, and the worst of the last minute.",
                queries={
                    "99th percentile": quantile(0.99, "pipelinejob_operator_event_loop_lag_seconds"),
                    "worst": "max(pipelinejob_operator_event_loop_lag_max_seconds)",
                },
            ),
            Chart(
                title="Events about jobs",
                unit="ops",
                sentence="Events written each second, joined ones as one, and events dropped.",
                queries={
                    "written": f"sum(rate(pipelinejob_operator_events_written_total[{WINDOW}]))",
                    "dropped": f"sum(rate(pipelinejob_operator_events_dropped_total[{WINDOW}]))",
                },
            ),
            Chart(
                title="Events that wait",
                unit="short",
                sentence="Events about jobs that are yet to be written.",
                queries={"waiting": "sum(pipelinejob_operator_events_waiting)"},
            ),
        ),
        (
            Chart(
                title="Memory",
                unit="bytes",
                sentence="What is resident of each operator process; docs/operations.md says what to expect.",
                queries={"{{instance}}": f"process_resident_memory_bytes {OF_OPERATOR}"},
            ),
            Chart(
                title="Processor",
                unit="short",
                sentence="Cores that each operator process keeps busy.",
                queries={"{{instance}}": f"rate(process_cpu_seconds_total[{WINDOW}]) {OF_OPERATOR}"},
            ),
            Chart(
                title="Leaders",
                unit="short",
                sentence="Operators that lead, by scrape job; one, or none during a hand-over.",
                queries={"{{job}}": f"sum by (job) (leader_election_master_status{{{LEASE}}})"},
            ),
        ),
    ),
)


def board() -> dashboard.Dashboard:
    """Build the dashboard."""
    return build("PipelineJob operator", "pipelinejob-operator", (JOBS, ADMISSION, AT_WORK, API_SERVER, PROCESS))
