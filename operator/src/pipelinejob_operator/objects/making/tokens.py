"""By what a stage knows that its operator speaks to it: a random word of its pod's own, in its environment.

It is made with the pod and stands nowhere else, so no right is needed beyond those on pods, and an
operator that was restarted reads it again. Who may read the namespace's pods may read it: who only
reaches a pod's port may not.
"""

import hashlib
from typing import Final

from pipelinejob.base import names
from pipelinejob_operator.cluster import Object
from pipelinejob_operator.objects.making.pod_template import merge

_DIGITS: Final = 48  # in base 16: 192 bits


def derived(secret: str, purpose: str) -> str:
    """Return the word for one purpose that follows from a secret; it tells nothing of the secret, or of other words."""
    return hashlib.sha256(f"{purpose} {secret}".encode()).hexdigest()[:_DIGITS]


def with_token(pod: Object, secret: str) -> dict[str, object]:
    """Return a pod that is to be made, with a token of its own."""
    variable = {"name": names.ENV_TOKEN, "value": derived(secret, f"pod {pod['metadata']['name']}")}
    return merge(pod, {"spec": {"containers": [{"name": names.CONTAINER_TRAINER, "env": [variable]}]}})


def authorization(pod: Object) -> dict[str, str]:
    """Return the headers of a request to a stage; none for one that was made without a token."""
    trainers = (each for each in pod["spec"].get("containers") or () if each["name"] == names.CONTAINER_TRAINER)
    variables = (variable for each in trainers for variable in each.get("env") or ())
    found = next((each.get("value") for each in variables if each["name"] == names.ENV_TOKEN), None)
    return {"Authorization": f"Bearer {found}"} if found else {}
