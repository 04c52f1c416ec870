"""Asks the API server what it makes of a job's pods before any is made, and where the volumes that they mount are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from pipelinejob_operator.admission.line.queueing import NOT_ADMITTED
from pipelinejob_operator.admission.pods.admitted import AdmittedPod, AdmittedPods, NodeSelector
from pipelinejob_operator.admission.pods.alike import AlikePods
from pipelinejob_operator.cluster import Cluster, ForbiddenError, InvalidError, Object, UnavailableError
from pipelinejob_operator.controller.turns import transitions
from pipelinejob_operator.controller.turns.transitions import Turn
from pipelinejob_operator.controller.turns.waiting.quota import REFUSED
from pipelinejob_operator.objects.controller_settings import ControllerSettings
from pipelinejob_operator.objects.job import Job, Rank, format_time
from pipelinejob_operator.objects.making.manifests import kind_of_stage
from pipelinejob_operator.objects.pods import StagePod


async def ask_admission(  # noqa: PLR0917  # one question, and whom it is put to
    cluster: Cluster, job: Job, kinds: Sequence[int], admitted: AdmittedPods, alike: AlikePods, now: datetime
) -> dict[int, AdmittedPod]:
    """Return the pods of these kinds as they would be stored, going by pods that are alike where one was asked about.

    Where that cannot be told, what was known before stays; the pods themselves will show. Raises
    ForbiddenError where they would be refused, UnavailableError where the API server, or a webhook
    of its, does not answer.
    """
    pods: dict[int, AdmittedPod] = {}
    for kind in kinds:
        pods[kind] = alike.get(job, kind, now) or await _ask(cluster, job, kind, admitted, alike, now)
    return pods


def not_let_in(
    turn: Turn, error: ForbiddenError | UnavailableError, *, times: int, settings: ControllerSettings
) -> Turn:
    """Wait, holding nothing, because the cluster would let no pod in; longer each time."""
    backoff_s = min(settings.max_restart_backoff_s, settings.waiting_retry_s * 2.0 ** min(times - 1, 10))
    turn = turn.having(not_before=format_time(turn.now + timedelta(seconds=backoff_s)), preempts=(), waits_for=())
    if isinstance(error, ForbiddenError):
        return transitions.wait(turn, REFUSED, f"the cluster would refuse the job's pods: {error}")
    message = f"the API server does not say what it makes of the job's pods, and is asked again: {error}"
    return transitions.wait(turn, NOT_ADMITTED, message)


def learn_from(admitted: AdmittedPods, job: Job, pods: Mapping[Rank, StagePod]) -> None:
    """Take up what admission made of the pods that stand."""
    assert job.spec is not None, "only readable jobs have pods"
    raw = {kind_of_stage(job.spec, rank.stage): pod.raw for rank, pod in sorted(pods.items(), reverse=True)}
    admitted.learn(job, {kind: replace(admitted.of(job, kind), pod=pod) for kind, pod in raw.items()})


async def _ask(  # noqa: PLR0917  # as above
    cluster: Cluster, job: Job, kind: int, admitted: AdmittedPods, alike: AlikePods, now: datetime
) -> AdmittedPod:
    rendered = admitted.rendered(job, kind)
    try:
        pod = await cluster.admitted(rendered)
    except InvalidError:  # a webhook that takes no part in dry runs; or the pod is, and that is told when it is made
        return await _with_volumes(cluster, rendered, admitted.of(job, kind).pod)
    answer = await _with_volumes(cluster, rendered, pod)
    alike.keep(job, kind, answer, now)
    return answer


async def _with_volumes(cluster: Cluster, rendered: Object, pod: Object) -> AdmittedPod:
    volumes: list[NodeSelector] = []
    missing: list[str] = []
    for name in _claims(pod):
        claim = await _look_up(cluster, "PersistentVolumeClaim", rendered["metadata"]["namespace"], name)
        if claim is None:
            missing.append(name)
        elif volume := (claim.get("spec") or {}).get("volumeName"):
            volumes += _reach(await _look_up(cluster, "PersistentVolume", "", volume))
    return AdmittedPod(pod=pod, volumes=tuple(volumes), missing_claims=tuple(missing))


async def _look_up(cluster: Cluster, kind: str, namespace: str, name: str) -> Object | None:
    try:
        return await cluster.look_up(kind, namespace, name)
    except ForbiddenError:  # an older chart's rights: then only the scheduler knows
        return {}


def _claims(pod: Object) -> Iterator[str]:
    for volume in pod["spec"].get("volumes") or ():
        if "persistentVolumeClaim" in volume:
            yield volume["persistentVolumeClaim"]["claimName"]


def _reach(volume: Object | None) -> list[NodeSelector]:
    required = ((volume or {}).get("spec") or {}).get("nodeAffinity", {}).get("required")
    return [required] if required else []
