"""Which models may be refused, and for which reason: what no line here allows must be trained."""

from collections import Counter
from collections.abc import Callable

from pipelinejob.schedules.families import ASYNCHRONOUS
from zoo.case import Case, Leg
from zoo.model import LAZY, bare

# One trained weight of all layers of a habit; and what makes a weight of its own of the
# embedding's.
ONE_WEIGHT = ("tied", "repeated", "repeated-counter")
OF_THE_EMBEDDING = {"shared-embedding", "shared-head", "borrowing"}
LOOKING_AT_THE_EMBEDDING = {"stored-head", "peeking"}
ON_ITS_MEMORY = OF_THE_EMBEDDING | LOOKING_AT_THE_EMBEDDING
SHARING = {*ONE_WEIGHT, *ON_ITS_MEMORY, "stored", "masked", "counted"}


def expected_refusals(case: Case) -> set[str]:
    """Return the reasons for which a case may be refused."""
    return {reason for reason, applies in RULES.items() if applies(case)}


def _has_sparse_gradients(case: Case) -> bool:
    return "sparse-embedding" in _counts(case)


def _has_a_lazy_layer(case: Case) -> bool:
    return "lazy" in _counts(case)


def _adds_in_its_forward(case: Case) -> bool:
    """Tell whether a layer adds to gradients in passes that run twice, or for another update's."""
    runs_again = any(leg.recompute or leg.again or leg.schedule in ASYNCHRONOUS for leg in case.legs)
    return "backward-inside" in _counts(case) and runs_again


def _has_state_beside_tensors(case: Case) -> bool:
    return "extra-state" in _counts(case)


def _uses_what_it_does_not_have(case: Case) -> bool:
    return "borrowing" in _counts(case)


def _changes_its_weight(case: Case) -> bool:
    changes = {"clamped-weight", "normed-embedding"} & _counts(case).keys()
    return bool(changes) and any(_has_copies(leg) or leg.schedule in ASYNCHRONOUS for leg in case.legs)


def _changes_what_is_still_needed(case: Case) -> bool:
    return bool({"clamped-weight", "shadow-weights"} & _counts(case).keys())


def _is_not_what_one_process_does(case: Case) -> bool:
    """Tell whether a preflight may find what other rules find in the first step."""
    found_later = _counts_together(case) or _changes_its_weight(case) or _uses_what_it_does_not_have(case)
    return case.preflight and found_later


def _has_two_parameters_on_one_memory(case: Case) -> bool:
    counts = _counts(case)
    of_the_embedding = LOOKING_AT_THE_EMBEDDING & counts.keys() and len(ON_ITS_MEMORY & counts.keys()) > 1
    return bool(counts["stored-inside"] or counts["stored"] > 1 or of_the_embedding)


def _shares_by_functions(case: Case) -> bool:
    return any(word.endswith(LAZY) and bare(word) in SHARING for word in case.habits)


def _counts_together(case: Case) -> bool:
    counts = _counts(case)
    return counts["counted"] > 1 or counts["repeated-counter"] > 1


def _ties_versions(case: Case) -> bool:
    counts = _counts(case)
    is_tied = any(counts[habit] > 1 for habit in ONE_WEIGHT) or sum(counts[each] for each in OF_THE_EMBEDDING) > 1
    return is_tied and any(leg.schedule in ASYNCHRONOUS for leg in case.legs)


def _has_copies(leg: Leg) -> bool:
    return leg.replicas > 1 or len(leg.built.routes) > 1


def _counts(case: Case) -> Counter[str]:
    return Counter(bare(word) for word in case.habits)


RULES: dict[str, Callable[[Case], bool]] = {
    "SparseGradient": _has_sparse_gradients,
    "LazyLayer": _has_a_lazy_layer,
    "GradientInForward": _adds_in_its_forward,
    "ExtraState": _has_state_beside_tensors,
    "HiddenParameter": _uses_what_it_does_not_have,
    "ParameterChanged": _changes_its_weight,
    "ChangedInPlace": _changes_what_is_still_needed,
    "PreflightFailed": _is_not_what_one_process_does,
    "SharedMemory": _has_two_parameters_on_one_memory,
    "SharedByFunctions": _shares_by_functions,
    "SharedBufferChanged": _counts_together,
    "TiedAcrossStages": _ties_versions,
}
