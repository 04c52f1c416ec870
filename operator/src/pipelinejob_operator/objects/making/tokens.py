"""By what a stage knows that its operator speaks to it: a random word of its pod's own, in its environment.

It is made with the pod and stands nowhere else, so no right is needed beyond those on pods, and an operator that was
restarted reads it again. Who may read the namespace's pods may read it: who only reaches a pod's port may not.
"""

import secrets

from pipelinejob.base import names
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.making.pod_template import merge


def with_token(pod: Object) -> dict[str, object]:
    """Return a pod that is to be made, with a token that no other has."""
    variable = {"name": names.ENV_TOKEN, "value": secrets.token_urlsafe(24)}
    return merge(pod, {"spec": {"containers": [{"name": names.CONTAINER_TRAINER, "env": [variable]}]}})


def authorization(pod: Object) -> dict[str, str]:
    """Return the headers of a request to a stage; none for one that was made without a token."""
    trainers = (each for each in pod["spec"].get("containers") or () if each["name"] == names.CONTAINER_TRAINER)
    variables = (variable for each in trainers for variable in each.get("env") or ())
    found = next((each.get("value") for each in variables if each["name"] == names.ENV_TOKEN), None)
    return {"Authorization": f"Bearer {found}"} if found else {}
