"""TopologyProfiles as the cluster holds them."""

from collections.abc import Iterable

import structlog
from pydantic import ValidationError

from pipelinejob.fabric.topology import Profiles
from pipelinejob.spec.network.topology_profile import TopologyProfileSpec
from pipelinejob_operator.cluster import Object

_log = structlog.get_logger(__name__)


def profiles_of(objects: Iterable[Object]) -> Profiles:
    """Read TopologyProfiles, by name.

    One that this version cannot read, which the CRD of another may have let in, counts as absent:
    jobs that name it are told so.
    """
    read = {}
    for each in objects:
        name = each["metadata"]["name"]
        try:
            read[name] = TopologyProfileSpec.model_validate(each["spec"])
        except (KeyError, ValidationError) as error:
            _log.warning("TopologyProfile cannot be read", name=name, error=str(error))
    return read
