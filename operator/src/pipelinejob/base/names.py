"""Every name that crosses a border: API group, labels, ports, environment, files, and the objects of a job.

Names of objects are functions of the job, never random, so a retried create meets its first
attempt instead of a twin.
"""

import hashlib

GROUP = "pipelinejob.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "PipelineJob"
PLURAL = "pipelinejobs"
SINGULAR = "pipelinejob"
SHORT_NAME = "pj"
PROFILE_KIND = "TopologyProfile"
PROFILE_PLURAL = "topologyprofiles"
PROFILE_SINGULAR = "topologyprofile"

FIELD_MANAGER = "pipelinejob-operator"

LABEL_JOB = f"{GROUP}/name"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_REPLICA = f"{GROUP}/replica"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_RESIZES = f"{GROUP}/resizes"  # of a plan: how often its attempt went over to other replicas from memory
LABEL_ORDINAL = f"{GROUP}/ordinal"  # of a pod that has no rank until it is bound
LABEL_SPARE = f"{GROUP}/spare"  # of a pod that is kept to take a lost stage's place: its number
LABEL_SERVICE = f"{GROUP}/service"  # of a chain of a job that serves, and of its pods: the job
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
KUEUE = "kueue.x-k8s.io/"  # what its labels begin with
LABEL_QUEUE = f"{KUEUE}queue-name"

# On a PriorityClass: "true" lets its jobs preempt whole gangs though its preemptionPolicy is
# Never.
ANNOTATION_GANG_PREEMPTION = f"{GROUP}/gang-preemption"

# On a pod of a late-bound job: the first stage that its template would do for, and, once it has a
# rank, `replica/stage`, and host:port of replica 0, stage 0.
ANNOTATION_SHAPE = f"{GROUP}/like-stage"
ANNOTATION_RANK = f"{GROUP}/rank"
ANNOTATION_RENDEZVOUS = f"{GROUP}/rendezvous"

GATE_GANG = f"{GROUP}/gang"

CONTAINER_TRAINER = "trainer"
PORT_METRICS = 9400
PORT_FRONT_NAME = "serve"
PORT_METRICS_NAME = "metrics"
PORT_RENDEZVOUS = 29500
PORT_RENDEZVOUS_NAME = "rendezvous"

# What a stage's process reads from its environment; everything else stands in the plan.
ENV_PLAN = "PIPELINEJOB_PLAN"  # path of plan.json
ENV_NAMESPACE = "PIPELINEJOB_NAMESPACE"
ENV_JOB = "PIPELINEJOB_NAME"
ENV_STAGE = "PIPELINEJOB_STAGE"
ENV_REPLICA = "PIPELINEJOB_REPLICA"
ENV_TENSOR = "PIPELINEJOB_TENSOR_RANK"  # among the processes of a stage; unset: the one that starts them all
ENV_SPARE = "PIPELINEJOB_SPARE"  # its number, of a process that is told later whose place it takes
ENV_ATTEMPT = "PIPELINEJOB_ATTEMPT"  # fences rendezvous and checkpoints
ENV_RENDEZVOUS = "PIPELINEJOB_RENDEZVOUS"  # host:port of replica 0, stage 0
ENV_RANK = "PIPELINEJOB_RANK"  # a folder where the two annotations appear, in place of stage, replica and rendezvous
ENV_METRICS_PORT = "PIPELINEJOB_METRICS_PORT"
ENV_TOKEN = "PIPELINEJOB_TOKEN"  # noqa: S105  # the variable; by what it holds a stage knows its operator
ENV_CHECKPOINTS = "PIPELINEJOB_CHECKPOINTS"  # folder, shared by all stages
ENV_OUTPUT = "PIPELINEJOB_OUTPUT"  # folder for steps.jsonl and timelines/; unset: none are written
ENV_TERMINATION_LOG = "PIPELINEJOB_TERMINATION_LOG"  # file for the Termination, /dev/termination-log in a pod
ENV_GRACE_S = "PIPELINEJOB_GRACE_SECONDS"
ENV_LEAVING_S = "PIPELINEJOB_LEAVING_SECONDS"  # clients may still come so long after a stage that serves is to stop
ENV_FRONT_PORT = "PIPELINEJOB_FRONT_PORT"  # of the HTTP front, where it is not the plan's

PLAN_MOUNT = "/etc/pipelinejob"
PLAN_FILE = "plan.json"
RANK_MOUNT = "/etc/pipelinejob-rank"
RANK_FILE = "rank"
RENDEZVOUS_FILE = "rendezvous"
CHECKPOINT_MOUNT = "/checkpoints"

# Files of a run, below ENV_OUTPUT.
STEPS_FILE = "steps.jsonl"  # one progress.StepRecord a line, written by the last stage of replica 0
TIMELINES_FOLDER = "timelines"  # <pod>.json: timeline.Timeline of the last steps of that rank


def pod_name(job: str, *, replica: int, stage: int) -> str:
    """Name the pod of one rank; also its hostname, so `<pod>.<job>.<namespace>.svc` stays the same over attempts."""
    return f"{job}-r{replica}-s{stage}"


def unnumbered_pod_name(job: str, *, ordinal: int) -> str:
    """Name a pod that gets its rank once it is bound; its name and hostname stay."""
    return f"{job}-p{ordinal}"


def spare_pod_name(job: str, *, number: int) -> str:
    """Name a pod that is kept to take a lost stage's place; its name stays when it does."""
    return f"{job}-spare-{number}"


def service_name(job: str) -> str:
    """Name the headless service that gives the stages their DNS names."""
    return job


def front_name(job: str) -> str:
    """Name the service through which clients reach a job that serves, and the budget of its disruptions."""
    return f"{job}-serve"


def chain_name(job: str, *, number: int) -> str:
    """Name one chain of a job that serves, itself a job; a name that would be too long is cut, and told by a digest."""
    name, end = f"{job}-{number}", f"-{hashlib.sha256(job.encode()).hexdigest()[:6]}-{number}"
    return name if len(name) <= MAX_JOB_NAME_LENGTH else f"{job[: MAX_JOB_NAME_LENGTH - len(end)].rstrip('-')}{end}"


def plan_name(job: str) -> str:
    """Name the config map that carries the plan."""
    return f"{job}-plan"


# The longest rank suffix is "-r1023-s1023"; a DNS label holds 63 characters.
MAX_JOB_NAME_LENGTH = 63 - len("-r1023-s1023")
