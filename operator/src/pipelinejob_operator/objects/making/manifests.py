"""The objects that a plan means: one config map, one headless service, one pod a rank. Pure: same job, same bytes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelinejob.base import names
from pipelinejob.contract.plan import Plan
from pipelinejob.spec.job import Device, Mode, PipelineJobSpec
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank
from pipelinejob_operator.objects.making.plan_text import plan_text
from pipelinejob_operator.objects.making.pod_template import merge

USER_ID = 65532  # "nonroot" of distroless images; any number but 0 would do
TERMINATION_LOG = "/dev/termination-log"


def plan_config_map(job: Job, plan: Plan, *, attempt: int, resizes: int = 0) -> Object:
    """Render the plan where every stage mounts it; the attempt, and how often it was resized, say whose it is."""
    metadata = _metadata(job, names.plan_name(job.key.name))
    metadata["labels"] |= {names.LABEL_ATTEMPT: str(attempt)}
    metadata["labels"] |= {names.LABEL_RESIZES: str(resizes)} if resizes else {}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {names.PLAN_FILE: plan_text(plan)},
    }


# A chain that has lost a stage is to receive nothing more, and soon.
_READINESS = {
    Mode.TRAIN: {"periodSeconds": 2, "timeoutSeconds": 5},
    Mode.SERVE: {"periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 1},
    Mode.BATCH: {"periodSeconds": 2, "timeoutSeconds": 5},
}
_LEAVING_S = 5  # until nobody sends requests any more to a first stage that is to stop
_MARGIN_S = 25  # for what comes before and after the answers in work
_RESTART_POLICIES = {Mode.TRAIN: "Never", Mode.SERVE: "Always", Mode.BATCH: "OnFailure"}


def headless_service(job: Job) -> Object:
    """Render the service that gives stages their DNS names, ready or not: they need each other to become so."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, names.service_name(job.key.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB: job.key.name},
            "ports": [
                {"name": names.PORT_METRICS_NAME, "port": names.PORT_METRICS, "protocol": "TCP"},
                {"name": names.PORT_RENDEZVOUS_NAME, "port": names.PORT_RENDEZVOUS, "protocol": "TCP"},
            ],
        },
    }


def front_service(job: Job, spec: PipelineJobSpec) -> Object | None:
    """Render the service for clients of a job that serves: first stages, each while all of its chain are there."""
    if not job.is_service or spec.serving is None:
        return None
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, names.front_name(job.key.name)),
        "spec": {
            "selector": first_stages(job),
            "ports": [
                {"name": names.PORT_FRONT_NAME, "port": 80, "targetPort": names.PORT_FRONT_NAME, "protocol": "TCP"},
            ],
        },
    }


def first_stages(job: Job) -> dict[str, str]:
    """Return the labels of the first stages of a job that serves."""
    return {names.LABEL_SERVICE: job.key.name, names.LABEL_STAGE: "0"}


def services_of(job: Job) -> tuple[Object, ...]:
    """Render all services of a job: of one that serves in chains the front, of any other what its stages meet by."""
    front = front_service(job, job.spec) if job.spec is not None else None
    return (headless_service(job),) if front is None else (front,)


def stage_pod(
    job: Job, spec: PipelineJobSpec, rank: Rank, *, attempt: int, settings: ControllerSettings, node: str | None = None
) -> Object:
    """Render one rank's pod: gated without a `node`, pinned to it and free to go with one."""
    template = stage_template(spec, rank.stage)
    pod_spec = merge(_pod_defaults(spec, job, settings), template.get("spec", {}))
    pod_spec["containers"] = _complete_trainer(pod_spec["containers"], job, spec, rank, attempt, settings)
    pod_spec["tolerations"] = _tolerations(pod_spec.get("tolerations", []), settings)
    pod_spec |= {
        # A gang that trains restarts together, under a new attempt; a stage that serves joins the
        # others again.
        "restartPolicy": _RESTART_POLICIES[spec.mode],
        "hostname": names.pod_name(job.key.name, replica=rank.replica, stage=rank.stage),
        "subdomain": names.service_name(job.key.name),
    }
    if _may_be_front(job, spec, rank) and "terminationGracePeriodSeconds" not in template.get("spec", {}):
        pod_spec["terminationGracePeriodSeconds"] = max(settings.grace_s, _longest_s(spec) + _LEAVING_S + _MARGIN_S)
    _set_grace(pod_spec)
    pod_spec = _pinned(pod_spec, node) if node else pod_spec | {"schedulingGates": _gates(pod_spec)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _pod_metadata(job, rank, attempt, template.get("metadata", {})),
        "spec": pod_spec,
    }


def let_go(pod: Object, node: str) -> dict[str, Any]:
    """Return what lets a gated pod go to a node: the gang's gate comes off, the affinity is narrowed, nothing else.

    The pod is as it stands, with all that admission added; what others gate it for stays.
    """
    pin = _pinned(pod["spec"], node)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    narrowed = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": pin}}
    gate = {"name": names.GATE_GANG, "$patch": "delete"}
    return {"spec": {"schedulingGates": [gate], "affinity": narrowed}}


def stage_template(spec: PipelineJobSpec, stage: int) -> dict[str, Any]:
    """Return the pod template that the user wants for a stage."""
    template: dict[str, Any] = dict(spec.template or {})
    for override in spec.stage_templates:
        if override.stage == stage:
            template = merge(template, override.template)
    return template


def kind_of_stage(spec: PipelineJobSpec, stage: int) -> int:
    """Return what stands for all stages whose pods ask alike: the stage itself if its template has changes, else -1."""
    changed = {override.stage for override in spec.stage_templates}
    return stage if stage in changed else -1


def rendezvous(job: Job, pod: str, settings: ControllerSettings) -> str:
    """Say where a job's ranks meet: host and port of the pod of replica 0, stage 0."""
    domain = f"{names.service_name(job.key.name)}.{job.key.namespace}.svc.{settings.cluster_domain}"
    return f"{pod}.{domain}:{names.PORT_RENDEZVOUS}"


def checkpoint_folder(job: Job, spec: PipelineJobSpec) -> str:
    """Return the folder inside a pod where the job's checkpoints live."""
    shared = f"{job.key.namespace}/{job.key.name}" if spec.checkpoint.volume else None
    below = spec.checkpoint.path or shared
    return f"{names.CHECKPOINT_MOUNT}/{below}" if below else names.CHECKPOINT_MOUNT


def owner_reference(job: Job) -> dict[str, Any]:
    """Say that the job owns the object, so that it goes when the job goes."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": job.key.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _metadata(job: Job, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": job.key.namespace,
        "labels": {names.LABEL_JOB: job.key.name, names.LABEL_MANAGED_BY: names.FIELD_MANAGER},
        "ownerReferences": [owner_reference(job)],
    }


def _pod_metadata(job: Job, rank: Rank, attempt: int, template: dict[str, Any]) -> dict[str, Any]:
    own = _metadata(job, names.pod_name(job.key.name, replica=rank.replica, stage=rank.stage))
    own["labels"] |= {names.LABEL_SERVICE: job.chain_of} if job.chain_of else {}
    own["labels"] |= {
        names.LABEL_STAGE: str(rank.stage),
        names.LABEL_REPLICA: str(rank.replica),
        names.LABEL_ATTEMPT: str(attempt),
    }
    users: dict[str, Any] = {key: template[key] for key in ("labels", "annotations") if key in template}
    return merge(users, own)


def _pod_defaults(spec: PipelineJobSpec, job: Job, settings: ControllerSettings) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,  # a stage talks to its peers, never to the API server
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",  # a volume full of checkpoints is not walked at every start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_trainer_defaults(spec, settings)],
        "volumes": _volumes(spec, job),
        **_priority(spec),
    }


def _priority(spec: PipelineJobSpec) -> dict[str, str]:
    # So that no pod of lower priority can take a single stage away;
    # docs/decisions/0007-many-jobs.md says the rest.
    name = spec.scheduling.priority_class_name
    return {"priorityClassName": name} if name else {}


def _trainer_defaults(spec: PipelineJobSpec, settings: ControllerSettings) -> dict[str, Any]:
    # What a user's template may change. What it may not stands in _complete_trainer.
    health = {"httpGet": {"path": "/healthz", "port": names.PORT_METRICS_NAME}}
    ready = {"httpGet": {"path": "/readyz", "port": names.PORT_METRICS_NAME}}
    mounts = [
        {"name": "plan", "mountPath": names.PLAN_MOUNT, "readOnly": True},
        {"name": "checkpoints", "mountPath": names.CHECKPOINT_MOUNT},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # the container's own, an empty volume
    ]
    if spec.device is Device.GPU:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108  # NCCL's, likewise
    return {
        "name": names.CONTAINER_TRAINER,
        "image": settings.trainer_image,
        "command": ["pipelinejob-trainer"],
        "args": ["run"],
        # The root file system is read-only and the user has no entry in /etc/passwd: torch's
        # caches ask for both.
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "trainer"}],  # noqa: S108
        "ports": [
            {"name": names.PORT_METRICS_NAME, "containerPort": names.PORT_METRICS, "protocol": "TCP"},
            {"name": names.PORT_RENDEZVOUS_NAME, "containerPort": names.PORT_RENDEZVOUS, "protocol": "TCP"},
            *_front_port(spec),
        ],
        "startupProbe": health | {"periodSeconds": 2, "failureThreshold": 150},
        "livenessProbe": health | {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "readinessProbe": ready | _READINESS[spec.mode],
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }


def _front_port(spec: PipelineJobSpec) -> list[dict[str, Any]]:
    if spec.mode is not Mode.SERVE or spec.serving is None:
        return []
    return [{"name": names.PORT_FRONT_NAME, "containerPort": spec.serving.port, "protocol": "TCP"}]


def _volumes(spec: PipelineJobSpec, job: Job) -> list[dict[str, Any]]:
    volume = spec.checkpoint.volume
    checkpoints: dict[str, Any] = (
        {"persistentVolumeClaim": {"claimName": volume.claim_name}} if volume else {"emptyDir": {}}
    )
    volumes: list[dict[str, Any]] = [
        {"name": "plan", "configMap": {"name": names.plan_name(job.key.name)}},
        {"name": "checkpoints"} | checkpoints,
        {"name": "tmp", "emptyDir": {}},
    ]
    if spec.device is Device.GPU:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    return volumes


def _complete_trainer(  # noqa: PLR0917  # one place that needs all a container is made of
    containers: list[dict[str, Any]],
    job: Job,
    spec: PipelineJobSpec,
    rank: Rank,
    attempt: int,
    settings: ControllerSettings,
) -> list[dict[str, Any]]:
    return [
        merge(each, {"env": _environment(job, spec, rank, attempt, settings), "resources": _resources(each, spec)})
        if each["name"] == names.CONTAINER_TRAINER
        else each
        for each in containers
    ]


def _environment(
    job: Job, spec: PipelineJobSpec, rank: Rank, attempt: int, settings: ControllerSettings
) -> list[dict[str, str]]:
    first = names.pod_name(job.key.name, replica=0, stage=0)
    values = {
        names.ENV_PLAN: f"{names.PLAN_MOUNT}/{names.PLAN_FILE}",
        names.ENV_NAMESPACE: job.key.namespace,
        names.ENV_JOB: job.key.name,
        names.ENV_STAGE: str(rank.stage),
        names.ENV_REPLICA: str(rank.replica),
        names.ENV_ATTEMPT: str(attempt),
        names.ENV_RENDEZVOUS: rendezvous(job, first, settings),
        names.ENV_METRICS_PORT: str(names.PORT_METRICS),
        names.ENV_CHECKPOINTS: checkpoint_folder(job, spec),
        names.ENV_TERMINATION_LOG: TERMINATION_LOG,
        **({names.ENV_LEAVING_S: str(_LEAVING_S)} if _may_be_front(job, spec, rank) else {}),
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _may_be_front(job: Job, spec: PipelineJobSpec, rank: Rank) -> bool:
    """Tell whether clients may come to the pod: each of a late-bound chain may turn out to be the first stage."""
    return spec.mode is Mode.SERVE and (rank.stage == 0 or job.binds_late)


def _longest_s(spec: PipelineJobSpec) -> int:
    """Return the seconds that one request may take."""
    return spec.serving.timeout_seconds if spec.serving else 0


def _set_grace(pod_spec: dict[str, Any]) -> None:
    whole_s = pod_spec["terminationGracePeriodSeconds"]
    pod_spec["containers"] = [
        merge(each, {"env": [_grace(each, whole_s)]}) if each["name"] == names.CONTAINER_TRAINER else each
        for each in pod_spec["containers"]
    ]


def _grace(container: dict[str, Any], whole_s: int) -> dict[str, str]:
    """Tell a container what is left of its grace once it gets SIGTERM: a kubelet sends it after a preStop's sleep."""
    slept_s = ((container.get("lifecycle") or {}).get("preStop") or {}).get("sleep", {}).get("seconds", 0)
    return {"name": names.ENV_GRACE_S, "value": str(max(0, whole_s - slept_s))}


def _resources(container: dict[str, Any], spec: PipelineJobSpec) -> dict[str, Any]:
    # Small requests where the user gave none: a pod without any is evicted first, one with much
    # waits for ever.
    given = container.get("resources", {})
    stated = given.get("requests", {}) | given.get("limits", {})
    sane = {"cpu": "1", "memory": "4Gi"} if spec.device is Device.GPU else {"cpu": "100m", "memory": "256Mi"}
    requests = {name: amount for name, amount in sane.items() if name not in stated}
    if spec.device is not Device.GPU:
        return {"requests": requests} if requests else {}
    gpus = {spec.gpu_resource: str(spec.parallelism.tensor)}
    return {"requests": requests | gpus, "limits": gpus}


def _tolerations(given: list[dict[str, Any]], settings: ControllerSettings) -> list[dict[str, Any]]:
    # Kubernetes adds 300 s itself; a gang should not wait that long for a node that is gone.
    keys = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    stated = {toleration.get("key") for toleration in given}
    own = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": settings.node_loss_toleration_s}
        for key in keys
        if key not in stated
    ]
    return [*given, *own]


def _gates(pod_spec: dict[str, Any]) -> list[dict[str, str]]:
    return [*pod_spec.get("schedulingGates", []), {"name": names.GATE_GANG}]


def kept_off(pod_spec: Mapping[str, Any], nodes: Iterable[str]) -> dict[str, Any]:
    """Return a pod's spec that lets the scheduler choose none of these nodes."""
    return _narrowed(pod_spec, [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes])


def _pinned(pod_spec: Mapping[str, Any], node: str) -> dict[str, Any]:
    return _narrowed(pod_spec, [{"key": "metadata.name", "operator": "In", "values": [node]}])


def _narrowed(pod_spec: Mapping[str, Any], fields: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # Terms of a node affinity are OR-ed, so this is added to every term that the user has; the API
    # server allows exactly that while the pod is still gated.
    affinity = pod_spec.get("affinity") or {}
    node_affinity = affinity.get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = [
        {**term, "matchFields": [*(term.get("matchFields") or ()), *fields]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    narrowed = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {**pod_spec, "affinity": {**affinity, "nodeAffinity": {**node_affinity, **narrowed}}}
