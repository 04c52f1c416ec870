"""What of another's stands under the names that a job needs: pods, seen in the cache; furniture, asked for live.

Services and config maps are cached by our label only, so a foreign one is seen by asking. That is
done once there is a place for the job, and what comes in between is noticed when the job's own is
made.
"""

from pipelinejob.base import names
from pipelinejob_operator.cluster import Cluster
from pipelinejob_operator.controller.observing.observe import Observed
from pipelinejob_operator.objects.making.manifests import services_of
from pipelinejob_operator.objects.ownership import Obstacle, obstacle


async def furniture_in_the_way(cluster: Cluster, observed: Observed) -> tuple[Obstacle, ...]:
    """Look for a config map or a service that is another's where the job has none of its own."""
    job = observed.job
    if job.has_begun:
        return ()
    plans = [] if observed.plan_uid else [names.plan_name(job.key.name)]
    services = [each["metadata"]["name"] for each in services_of(job)]
    wanted = [("ConfigMap", name) for name in plans]
    wanted += [("Service", name) for name in services if name not in observed.services]
    found = [await cluster.look_up(kind, job.key.namespace, name) for kind, name in wanted]
    obstacles = (obstacle(each, uid=job.uid, name=job.key.name) for each in found if each is not None)
    return tuple(each for each in obstacles if each is not None)
