"""The trace against the Trace Event Format, as far as it is used."""

import json
from collections import defaultdict
from typing import Any

import pytest

from tests.unit.sample_journal import read, simulate
from workers.history import RunHistory
from workers.report_trace import as_trace

NEEDED = {
    "M": {"name": str, "args": dict},
    "X": {"name": str, "cat": str, "ts": int, "dur": int, "args": dict},
    "i": {"name": str, "cat": str, "ts": int, "s": str, "args": dict},
    "C": {"name": str, "ts": int, "args": dict},
}
METADATA = {"process_name": ("name", str), "thread_name": ("name", str), "thread_sort_index": ("sort_index", int)}


def check(document: dict[str, Any]) -> list[str]:
    """What is wrong with a trace, by the schema of the format."""
    faults = [] if document.get("displayTimeUnit") in ("ms", "ns") else ["displayTimeUnit"]
    if not isinstance(document.get("traceEvents"), list):
        return [*faults, "traceEvents is no list"]
    for number, event in enumerate(document["traceEvents"]):
        faults += [f"event {number}: {fault}" for fault in _faults(event)]
    return faults + _overlaps(document["traceEvents"])


def _faults(event: dict[str, Any]) -> list[str]:
    needed = NEEDED.get(event.get("ph", ""))
    if needed is None:
        return [f"ph {event.get('ph')!r}"]
    needed = {**needed, "pid": int, "tid": int}
    faults = [key for key, kind in needed.items() if type(event.get(key)) is not kind]
    faults += [key for key in ("ts", "dur") if event.get(key, 0) < 0]
    if event["ph"] == "M":
        key, kind = METADATA.get(event["name"], ("", object))
        faults += [] if type(event["args"].get(key)) is kind else [f"args of {event['name']}"]
    if event["ph"] == "i" and event["s"] not in ("g", "p", "t"):
        faults.append("scope")
    if event["ph"] == "C" and not all(type(value) is int and value >= 0 for value in event["args"].values()):
        faults.append("counter")
    return faults


def _overlaps(events: list[dict[str, Any]]) -> list[str]:
    """Complete events of one track must be nested or apart; ours are apart."""
    ends: dict[int, int] = defaultdict(int)
    faults = []
    for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: (e["ts"], e["dur"])):
        if event["ts"] < ends[event["tid"]]:
            faults.append(f"{event['name']} overlaps on track {event['tid']}")
        ends[event["tid"]] = event["ts"] + event["dur"]
    return faults


@pytest.fixture(scope="module", params=[False, True], ids=["ended", "live"])
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunHistory:
    path = tmp_path_factory.mktemp("trace") / "journal.sqlite"
    simulate(path, pos=500, workers=3, is_live=request.param)
    return read(path)


def test_the_check_finds_faults() -> None:
    event = {"ph": "X", "name": "P", "cat": "completed", "ts": 0, "dur": 2, "pid": 1, "tid": 1, "args": {}}
    assert check({"displayTimeUnit": "ms", "traceEvents": [event]}) == []
    assert check({"displayTimeUnit": "ms", "traceEvents": [event, event | {"ts": 1}]})
    for wrong in ({"ph": "?"}, {"ts": 0.5}, {"dur": -1}, {"tid": "1"}, {"name": None}):
        assert check({"displayTimeUnit": "ms", "traceEvents": [event | wrong]})


def test_the_trace_keeps_to_the_format(history: RunHistory) -> None:
    assert check(json.loads(as_trace(history))) == []


def test_every_attempt_is_an_event_on_the_track_of_its_worker(history: RunHistory) -> None:
    events = json.loads(as_trace(history))["traceEvents"]

    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    told = sorted((names[e["tid"]], e["args"]["task_id"], e["args"]["attempt"]) for e in events if e["ph"] == "X")
    assert told == sorted((a.slot, a.task_id, a.attempt) for a in history.attempts)
    assert list(names.values()) == ["queue", "w1", "w2", "w3"]


def test_kills_and_pauses_are_instants_and_the_queue_is_a_counter(history: RunHistory) -> None:
    events = json.loads(as_trace(history))["traceEvents"]

    assert sum(event.get("cat") == "kill" for event in events) == history.counts["kills"] > 0
    assert [event["name"] for event in events if event.get("cat") == "pause"] == ["paused", "resumed"] * 2
    counters = [event["args"] for event in events if event["ph"] == "C"]
    waiting = history.counts["pending"] + history.counts["retry_pending"]
    assert counters[-1]["waiting"] == waiting and counters[0]["waiting"] >= 499
    assert max(counter["running"] for counter in counters) == 3
