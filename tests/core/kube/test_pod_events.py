"""Events of a pod, in the order in which they happened last, by whichever of the two APIs they were written."""

from pipelinejob_operator.kube.pod_events import in_order


def event(reason, *, version="1", uid="u", kind="Normal", **times):
    return {
        "metadata": {"resourceVersion": version},
        "regarding": {"kind": "Pod", "name": "gpt-r0-s0", "uid": uid},
        "type": kind,
        "reason": reason,
        "note": f"{reason} it is",
    } | times


def reasons(*items):
    return [each.reason for each in in_order(items, uid="u")]


def test_a_repeated_event_counts_by_its_last_time():
    old_api = event(
        "FailedMount", deprecatedFirstTimestamp="2026-01-01T00:00:00Z", deprecatedLastTimestamp="2026-01-01T00:04:00Z"
    )
    new_api = event(
        "FailedScheduling",
        eventTime="2026-01-01T00:00:01.000000Z",
        series={"count": 3, "lastObservedTime": "2026-01-01T00:03:00.000000Z"},
    )
    once = event("Scheduled", eventTime="2026-01-01T00:03:30.123456Z")

    assert reasons(old_api, new_api, once) == ["FailedScheduling", "Scheduled", "FailedMount"]


def test_events_of_one_second_stand_as_they_were_written():
    second = "2026-01-01T00:00:00"
    pulling = event("Pulling", version="9", deprecatedLastTimestamp=f"{second}Z")
    failed = event("Failed", version="10", eventTime=f"{second}.000001Z")

    assert reasons(failed, pulling) == ["Pulling", "Failed"]


def test_a_namesake_of_an_earlier_attempt_is_another():
    assert reasons(event("A"), event("B", uid="older", version="2"), event("C", uid=None, version="3")) == ["A", "C"]


def test_an_event_keeps_its_kind_and_words():
    (read,) = in_order([event("FailedMount", kind="Warning")], uid="u")

    assert (read.type, read.message) == ("Warning", "FailedMount it is")
