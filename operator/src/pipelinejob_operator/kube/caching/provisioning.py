"""What is known of the requests for nodes: ours, where the cluster serves such, and the pod templates they refer to."""

from collections.abc import Callable
from typing import Any

from pipelinejob.base import names
from pipelinejob_operator.cluster import Autoscaler, Key, Object
from pipelinejob_operator.kube.caching.informer import Change
from pipelinejob_operator.kube.caching.watched import Watched
from pipelinejob_operator.objects.ownership import controller, is_owned
from pipelinejob_operator.objects.peers.provisioning import KIND, TEMPLATE_KIND, request_name

FOLDERS = {
    KIND: ("/apis/autoscaling.x-k8s.io/v1", "provisioningrequests"),
    TEMPLATE_KIND: ("/api/v1", "podtemplates"),
}


class ProvisioningCache:
    """Requests and templates, as last seen."""

    def __init__(self, *, requests: Watched, templates: Watched) -> None:
        self._requests, self._templates = requests, templates

    @property
    def watched(self) -> tuple[Watched, ...]:
        """Return the caches."""
        return (self._requests, self._templates)

    def of(self, key: Key, uid: str) -> Autoscaler:
        """Return what concerns a job."""
        found = self._requests.get(key.namespace, request_name(key.name, uid))
        made = found if found and is_owned(found, uid) else None
        templates = self._templates_of(made) if made else frozenset()
        return Autoscaler(is_served=self._requests.is_served, request=made, templates=templates)

    def offer(self, item: dict[str, Any]) -> None:
        """Take up what the API server answered to a write of one of them."""
        (self._requests if item["kind"] == KIND else self._templates).offer(item)

    def _templates_of(self, made: Object) -> frozenset[str]:
        owner = made["metadata"]["uid"]
        return frozenset(each["metadata"]["name"] for each in self._templates.objects() if is_owned(each, owner))


def on_request(enqueue: Callable[[Key], None]) -> Callable[[Change], None]:
    """Return what lets a job have a pass whenever its request changes."""

    def changed(change: Change) -> None:
        item = change.new or change.old
        found = controller(item) if item else None
        if item and found and found.get("kind") == names.KIND:
            enqueue(Key(item["metadata"]["namespace"], found["name"]))

    return changed
