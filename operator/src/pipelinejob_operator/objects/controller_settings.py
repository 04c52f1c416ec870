"""What the controller may be told: one frozen object, passed down, read from nowhere else."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """Times are seconds."""

    trainer_image: str
    cluster_domain: str = "cluster.local"
    grace_s: int = 60  # a pod's terminationGracePeriodSeconds, unless its template has one: time for a checkpoint
    progress_interval_s: float = 10.0  # between two status writes that only bring newer measurements
    waiting_retry_s: float = 10.0  # a job without room looks again this often, beside every change of pods and nodes
    gang_timeout_s: float = 300.0  # released pods that are not all bound by then are taken back
    start_timeout_s: float = 300.0  # from a stage's node to its process; longer is a failure
    pull_timeout_s: float = 1800.0  # the same while an image is being pulled and nothing says that it fails
    hearing_interval_s: float = 5.0  # a gang that is not up is asked after so long, and as often, what its events say
    sidecar_wait_s: float = 10.0  # what lives on beside an ended trainer may end by itself so long; its pod goes then
    node_refusal_s: float = 120.0  # a node that refused one of a job's pods is left out so long, and longer each time
    root_cause_wait_s: float = 5.0  # stages that lost a peer wait so long for that peer's own end to be seen
    restart_backoff_s: float = 5.0  # before the second restart; doubles with each
    max_restart_backoff_s: float = 300.0
    max_disruptions_in_a_row: int = 20  # none of which let the gang run for twice the longest back-off: it ends then
    keeps_spares: bool = False  # warm processes that take a lost stage's place
    shares_processors: bool = False  # replicas that are asked for need no device for each of their ranks
    move_s: float = 60.0  # what it costs that a healthy stage goes to a node where its image may not be
    node_loss_toleration_s: int = 30  # Kubernetes' own 300 would keep the gang waiting for a dead node
