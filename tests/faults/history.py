"""What went in must come out, once: the check of a batch's history, after Jepsen's total-queue.

lines     what the POs themselves have witnessed (witness.py)
results   how every PO ended: report.json as the run has left it, which results.csv must agree with
facts     the journal, read line by line by this module, not by the replay that it is to check

lost            a PO of the input has not ended, or not in the results
unexpected      something ended or ran that was not in the input
ended twice     a PO stands in the results, or was recorded as completed, more than once
done twice      a PO that was recorded as completed was leased or begun again
run twice       one attempt was begun twice, or more attempts were begun than leased
overlap         two executions of one PO at the same time
early retry     an attempt was begun before the delay after the failure of the one before was over
disagreement    results and journal tell different ends
"""

import csv
import itertools
import json
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from poqueue.records import Kind

CLOCKS_S = 0.05  # the journal's times are UTC, the witnesses' monotonic: a slewed clock moves one against the other
ENDED = ("succeeded", "failed")
STATUS_OF = {"completed": "succeeded", "failed": "failed"}


class Line(NamedTuple):
    """What a PO has witnessed; `at` is monotonic seconds."""

    event: str
    po: str
    attempt: int
    pid: int
    at: float


class Violation(NamedTuple):
    """A promise that was broken."""

    rule: str
    po: str
    text: str


class Wait(NamedTuple):
    """A failed attempt after which the PO had to wait; `at` is monotonic seconds."""

    po: str
    attempt: int
    at: float
    delay_s: float


@dataclass(slots=True)
class Facts:
    """What a journal says: by PO number, since every PO here is one task."""

    leases: Counter[str] = field(default_factory=Counter)  # those that may have been begun: undone ones left out
    completed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[str, str] = field(default_factory=dict)
    waits: list[Wait] = field(default_factory=list)
    again: list[str] = field(default_factory=list)  # leased after they were completed
    interrupted: int = 0
    asked_again: set[str] = field(default_factory=set)  # by `poqueue retry`
    tasks: Counter[str] = field(default_factory=Counter)


def read_lines(path: Path) -> list[Line]:
    """The witnesses' lines, in the order in which they were written."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [Line(*json.loads(line)) for line in text.splitlines()]


def read_results(run_dir: Path) -> list[tuple[str, str]]:
    """PO number and status of every task of report.json."""
    tasks = json.loads((run_dir / "report.json").read_text())["tasks"]
    return [(task["po_number"], STATUS_OF.get(task["status"], "not run")) for task in tasks]


def read_rows(run_dir: Path, column: str = "po_number") -> list[tuple[str, str]]:
    """PO number and status of every row of results.csv."""
    with open(run_dir / "results.csv", encoding="utf-8", newline="") as file:
        return [(row[column].strip(), row["status"]) for row in csv.DictReader(file)]


def read_facts(journal: Path) -> Facts:
    """Read a journal that nobody uses any more; its wall times as monotonic ones, by the clocks of this moment."""
    offset = time.monotonic() - time.time()
    with closing(sqlite3.connect(journal)) as db:
        number_of = dict(db.execute("SELECT rank, po_number FROM tasks"))
        log = db.execute("SELECT kind, rank, token, at, delay_s FROM log ORDER BY seq").fetchall()
    facts = Facts(tasks=Counter(number_of.values()))
    token_of: dict[int, int] = {}
    attempts: Counter[int] = Counter()
    for number, rank, token, at, delay_s in log:
        kind = Kind(number)
        rank = token_of.get(token, rank)
        if rank not in number_of:
            continue
        po, at = number_of[rank], at + offset
        if kind is Kind.LEASED:
            if facts.ends.get(po) == "succeeded":
                facts.again.append(po)
            token_of[token] = rank
            facts.leases[po] += 1
            attempts[rank] += 1
        elif kind is Kind.UNDONE:
            facts.leases[po] -= 1
            attempts[rank] -= 1
        elif kind is Kind.COMPLETED:
            facts.completed[po].append(at)
            facts.ends[po] = "succeeded"
        elif kind in (Kind.FAILED, Kind.CANCELLED):
            facts.ends[po] = "failed"
        elif kind in (Kind.RETRY, Kind.RETRIED):
            facts.waits.append(Wait(po, attempts[rank], at, delay_s or 0.0))
        elif kind is Kind.REQUEUED:
            facts.ends.pop(po, None)
            facts.asked_again.add(po)
        elif kind is Kind.INTERRUPTED:
            facts.interrupted += 1
        elif kind is Kind.CLEARED:
            facts.tasks[po] -= 1
    return facts


def check(
    expected: Iterable[str],
    lines: Sequence[Line],
    results: Sequence[tuple[str, str]],
    facts: Facts | None = None,
    *,
    deaths: Mapping[int, float] | None = None,
) -> list[Violation]:
    """Everything that was broken, an empty list if nothing was.

    Args:
        expected: the PO numbers that should have been run.
        deaths: when processes were killed, by pid, monotonic seconds; where it is not known, the end of an attempt without
            an end is taken from the next line of its process.
    """
    wanted = set(expected)
    found = [*_check_ends(wanted, lines, results), *_check_witnessed(lines, deaths or {})]
    return found + _check_facts(lines, results, facts) if facts is not None else found


def _check_ends(wanted: set[str], lines: Sequence[Line], results: Sequence[tuple[str, str]]) -> Iterable[Violation]:
    ends = Counter(po for po, status in results if status in ENDED)
    for po in sorted(wanted - set(ends)):
        yield Violation("lost", po, "it is not among the results")
    for po in sorted((set(ends) | {line.po for line in lines}) - wanted):
        yield Violation("unexpected", po, "it was not in the input")
    for po, count in ends.items():
        if count > 1:
            yield Violation("ended twice", po, f"{count} rows of the results")


def _check_witnessed(lines: Sequence[Line], deaths: Mapping[int, float]) -> Iterable[Violation]:
    begun = Counter((line.po, line.attempt) for line in lines if line.event == "begin")
    for (po, attempt), count in begun.items():
        if count > 1:
            yield Violation("run twice", po, f"attempt {attempt} was begun {count} times")
    for line in lines:
        if line.event == "overlap":
            yield Violation(
                "overlap", line.po, f"attempt {line.attempt} began while the process of an earlier one lived"
            )
    for po, spans in _spans(lines, deaths).items():
        for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
            if begin < end:
                yield Violation("overlap", po, f"attempt {second} began {end - begin:.3f} s before the end of {first}")


def _spans(lines: Sequence[Line], deaths: Mapping[int, float]) -> dict[str, list[tuple[float, float, int]]]:
    """Begin, end and attempt of every execution, by PO, in order. An end that nobody saw is put as early as it may have been."""
    spans: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    open_of: dict[int, Line] = {}

    def close(line: Line, at: float) -> None:
        spans[line.po].append((line.at, at, line.attempt))

    for line in sorted(lines, key=lambda one: one.at):
        if line.event == "begin":
            if line.pid in open_of:
                before = open_of[line.pid]
                close(before, min(deaths.get(line.pid, line.at), line.at))
            open_of[line.pid] = line
        elif line.event in ("end", "fail") and line.pid in open_of:
            close(open_of.pop(line.pid), line.at)
    for line in open_of.values():
        close(line, max(line.at, deaths.get(line.pid, line.at)))
    return {po: sorted(found) for po, found in spans.items()}


def _check_facts(lines: Sequence[Line], results: Sequence[tuple[str, str]], facts: Facts) -> list[Violation]:
    found = [Violation("done twice", po, "it was leased after it had been completed") for po in facts.again]
    found += [
        Violation("ended twice", po, f"completed {len(times)} times")
        for po, times in facts.completed.items()
        if len(times) > 1
    ]
    found += [Violation("ended twice", po, f"{count} tasks") for po, count in facts.tasks.items() if count > 1]
    begun: Counter[str] = Counter()
    begins: dict[tuple[str, int], float] = {}
    fails: dict[tuple[str, int], float] = {}
    for line in lines:
        if line.event == "begin":
            begun[line.po] += 1
            begins.setdefault((line.po, line.attempt), line.at)
            done = min(facts.completed.get(line.po, ()), default=None)
            if done is not None and line.at > done + CLOCKS_S:
                found.append(Violation("done twice", line.po, f"begun {line.at - done:.3f} s after it was completed"))
        elif line.event == "fail":
            fails[line.po, line.attempt] = line.at
    for po, count in begun.items():
        if count > facts.leases[po]:
            found.append(Violation("run twice", po, f"begun {count} times, leased {facts.leases[po]} times"))
    for wait in facts.waits:
        begin = begins.get((wait.po, wait.attempt + 1))
        since = max(fails.get((wait.po, wait.attempt), 0.0), wait.at - CLOCKS_S)
        if begin is not None and begin < since + wait.delay_s:
            text = f"attempt {wait.attempt + 1} came {since + wait.delay_s - begin:.3f} s before its delay was over"
            found.append(Violation("early retry", wait.po, text))
    told = {po: status for po, status in results if status in ENDED}
    for po in sorted(set(told) | set(facts.ends)):
        if told.get(po) != facts.ends.get(po):
            text = f"results: {told.get(po)}, journal: {facts.ends.get(po)}"
            found.append(Violation("disagreement", po, text))
    return found
