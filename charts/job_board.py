"""The dashboard of jobs: how far they are, where each stage's time goes, where they stand.

A row about stages stands there once for each job that was chosen, and every line belongs to one
job: sums and means over several say nothing of any.
"""

from grafana_foundation_sdk.builders import dashboard

from panels import WINDOW, Chart, Row, build, choice, middle_and_slowest

JOB = 'namespace=~"$namespace", pipelinejob=~"$pipelinejob"'
BY_JOB = "by (namespace, pipelinejob)"
BY_STAGE = "by (namespace, pipelinejob, stage, replica)"
STAGE = "{{pipelinejob}}: stage {{stage}}, replica {{replica}}"
COMPUTE = 'state=~"forward|backward_input|backward_weight"'
WAITING = 'state=~"send|recv|idle"'


def seconds(selector: str) -> str:
    """Return the rate of a stage's seconds in some states: the share of its time spent there."""
    return f"sum {BY_STAGE} (rate(pipelinejob_stage_seconds_total{{{JOB}, {selector}}}[{WINDOW}]))"


def seconds_per_step(selector: str) -> str:
    """Return the seconds each step spends in some states, stage by stage."""
    return f"{seconds(selector)} / ({STEPS} > 0)"


STEPS = f"sum {BY_STAGE} (rate(pipelinejob_steps_total{{{JOB}}}[{WINDOW}]))"
IDLE = f"sum by (namespace, pipelinejob, stage, replica, cause) (rate(pipelinejob_stage_idle_seconds_total{{{JOB}}}[{WINDOW}]))"
BUBBLE = f"{seconds(WAITING)} / ({seconds(WAITING)} + {seconds(COMPUTE)})"
LOSS = f'max {BY_JOB} (pipelinejob_loss{{{JOB}, replica="0"}})'
TOKENS = f'sum {BY_JOB} (rate(pipelinejob_tokens_total{{{JOB}, stage="0"}}[{WINDOW}]))'


def number(title: str, sentence: str, unit: str, expression: str) -> Chart:
    """Return a panel that shows one number for each job."""
    return Chart(
        title=title, sentence=sentence, unit=unit, queries={"{{pipelinejob}}": expression}, kind="number", height=4
    )


PROGRESS = Row(
    title="How far, how good",
    lines=(
        (
            number(
                "Step",
                "Optimiser steps completed, over all attempts (measured).",
                "short",
                f"max {BY_JOB} (pipelinejob_step{{{JOB}}})",
            ),
            number("Loss", "Nats per token, mean over the global batch (measured).", "short", LOSS),
            number("Tokens per second", "Tokens trained on each second, whole job (measured).", "short", TOKENS),
            number(
                "Bubble",
                "Share of schedule time that stages wait, mean over a job's stages (measured).",
                "percentunit",
                f"avg {BY_JOB} ({BUBBLE})",
            ),
            number(
                "Restarts",
                "Times the gang was started again from a checkpoint.",
                "short",
                f"max {BY_JOB} (pipelinejob_restarts_total{{{JOB}}})",
            ),
            number(
                "Checkpoint age",
                "Seconds since the newest verified checkpoint: what a crash now would cost.",
                "s",
                f"time() - max {BY_JOB} (pipelinejob_checkpoint_last_success_timestamp_seconds{{{JOB}}} > 0)",
            ),
        ),
        (
            Chart(
                title="Loss",
                unit="short",
                sentence="Nats per token, mean over the global batch, and of the last evaluation (measured).",
                queries={
                    "{{pipelinejob}}": LOSS,
                    "{{pipelinejob}}, evaluation": f"max {BY_JOB} (pipelinejob_evaluation_loss{{{JOB}}})",
                },
            ),
            Chart(
                title="Gradient norm",
                unit="short",
                sentence="Global norm over all stages, before clipping (measured).",
                queries={"{{pipelinejob}}": f"max {BY_JOB} (pipelinejob_gradient_norm{{{JOB}}})"},
            ),
            Chart(
                title="Tokens per second",
                unit="short",
                sentence="Tokens trained on each second, whole job (measured).",
                queries={"{{pipelinejob}}": TOKENS},
            ),
        ),
    ),
)
STAGES = Row(
    title="Where each stage's time goes: $pipelinejob",
    repeated_for="pipelinejob",
    lines=(
        (
            Chart(
                title="Utilization of each stage",
                unit="percentunit",
                full=1,
                sentence="Share of wall time in forward and backward (measured).",
                queries={STAGE: seconds(COMPUTE)},
            ),
            Chart(
                title="Bubble of each stage, measured and predicted",
                unit="percentunit",
                full=1,
                sentence="Waiting / (waiting + compute). Dashes: what the plan predicts.",
                queries={
                    STAGE: BUBBLE,
                    "{{pipelinejob}}: stage {{stage}} (predicted)": (
                        f"max by (namespace, pipelinejob, stage) (pipelinejob_stage_predicted_bubble_ratio{{{JOB}}})"
                    ),
                },
            ),
        ),
        (
            Chart(
                title="Forward, each step",
                unit="s",
                sentence="Seconds of forward passes in a step (measured).",
                queries={STAGE: seconds_per_step('state="forward"')},
            ),
            Chart(
                title="Backward, each step",
                unit="s",
                sentence="Seconds of backward passes in a step (measured).",
                queries={STAGE: seconds_per_step('state=~"backward_input|backward_weight"')},
            ),
            Chart(
                title="Communication, each step",
                unit="s",
                sentence="Seconds blocked on sends and receives in a step (measured).",
                queries={STAGE: seconds_per_step('state=~"send|recv"')},
            ),
        ),
        (
            Chart(
                title="All states, mean over stages",
                unit="percentunit",
                kind="stacked",
                full=1,
                sentence="Every second of a stage is in exactly one state, so this sums to 1 (measured).",
                queries={
                    "{{pipelinejob}}: {{state}}": (
                        f"avg by (namespace, pipelinejob, state) (rate(pipelinejob_stage_seconds_total{{{JOB}}}[{WINDOW}]))"
                    ),
                },
            ),
            Chart(
                title="What waits were for, each step",
                unit="s",
                kind="stacked",
                sentence="Seconds a stage waits in a step, by cause, mean over stages (measured).",
                queries={
                    "{{pipelinejob}}: {{cause}}": (
                        "avg by (namespace, pipelinejob, cause) "
                        f"({IDLE} / on (namespace, pipelinejob, stage, replica) group_left () ({STEPS} > 0))"
                    ),
                },
            ),
        ),
        (
            Chart(
                title="Step time, measured and predicted",
                unit="s",
                sentence="Median and 99th percentile of a step (measured). Dashes: what the plan predicts.",
                queries={
                    **middle_and_slowest(
                        "pipelinejob_step_duration_seconds", JOB, "namespace, pipelinejob, le", of="{{pipelinejob}}: "
                    ),
                    "{{pipelinejob}}: step (predicted)": f"max {BY_JOB} (pipelinejob_predicted_step_seconds{{{JOB}}})",
                },
            ),
            Chart(
                title="Memory peak of each stage",
                unit="bytes",
                sentence="Peak memory of each stage's process (measured).",
                queries={STAGE: f'max {BY_STAGE} (pipelinejob_memory_bytes{{{JOB}, kind="peak"}})'},
            ),
            Chart(
                title="Bytes sent by each stage",
                unit="Bps",
                sentence="Activations and gradients sent by each stage (measured).",
                queries={
                    STAGE: f'sum {BY_STAGE} (rate(pipelinejob_p2p_bytes_total{{{JOB}, direction="send"}}[{WINDOW}]))'
                },
            ),
        ),
    ),
)
PLACE = Row(
    title="Where it stands: $pipelinejob",
    repeated_for="pipelinejob",
    lines=(
        (
            Chart(
                title="Stages parted, by level",
                unit="short",
                sentence="Neighbouring stages that stand in different domains of a level of the network.",
                queries={
                    "{{pipelinejob}}, {{level}}": (
                        f"max by (namespace, pipelinejob, level) (pipelinejob_placement_crossings{{{JOB}}})"
                    ),
                },
            ),
            Chart(
                title="What the place costs",
                unit="percentunit",
                sentence="Predicted share of a step, and the least that any place would have cost with what was free.",
                queries={
                    "{{pipelinejob}}: place (predicted)": (
                        f"max {BY_JOB} (pipelinejob_placement_penalty_ratio{{{JOB}}})"
                    ),
                    "{{pipelinejob}}: least (predicted)": (
                        f"max {BY_JOB} (pipelinejob_placement_least_penalty_ratio{{{JOB}}})"
                    ),
                },
            ),
            Chart(
                title="Room left beside it",
                unit="short",
                sentence="Stages like the job's that still fitted into one domain of a level when it was placed.",
                queries={
                    "{{pipelinejob}}, {{level}}": (
                        f"max by (namespace, pipelinejob, level) (pipelinejob_placement_room_left{{{JOB}}})"
                    ),
                },
            ),
        ),
    ),
)


def board() -> dashboard.Dashboard:
    """Build the dashboard; one namespace is chosen in it, and any number of the jobs there."""
    namespace = choice("namespace", "Namespace", "label_values(pipelinejob_steps_total, namespace)").multi(False)
    jobs = choice(
        "pipelinejob", "PipelineJob", 'label_values(pipelinejob_steps_total{namespace=~"$namespace"}, pipelinejob)'
    )
    return build("PipelineJob", "pipelinejob", (PROGRESS, STAGES, PLACE), variables=(namespace, jobs))
