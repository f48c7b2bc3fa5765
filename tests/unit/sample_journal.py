"""Journals as runs leave them: small ones told line by line, and large ones of a simulated run.

    with JournalMaker(tmp_path / "journal.sqlite") as journal:
        rank = journal.add("4711", supplier="Acme", amount="12.50")
        token = journal.lease(rank, "w1.1", at=1.0)
        journal.end(Kind.COMPLETED, token, at=3.0, seconds=2.0)

Times are seconds since BEGUN_AT.
"""

import heapq
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from poqueue.journal import Journal
from poqueue.records import Kind, Record
from workers.history import RunHistory, history_from_journal

BEGUN_AT = 1_780_000_000.0
STACK = """Current thread 0x00007f12 (most recent call first):
  File "/usr/lib/python3.11/socket.py", line 706 in readinto
  File "/opt/site/{module}.py", line {line} in {function}
  File "/opt/site/{module}.py", line 88 in process
  File "/opt/poqueue/workers/worker.py", line 310 in _call
"""
TRACEBACK = """Traceback (most recent call last):
  File "/opt/site/portal.py", line 31, in process
    check(po)
  File "/opt/site/portal.py", line 57, in check
    raise ValueError(text)
ValueError: {text}
"""
SUPPLIERS = tuple(f"{a} {b}" for a in ("Łódź", "Delta", "Ōkami", "Nordic", "Río", "Apex") for b in
                  ("Metalworks", "Packaging Inc.", "Electronics K.K.", "Paper", "& Söhne GmbH", "Supply Co."))  # fmt: skip


class JournalMaker:
    """Writes a journal; everything in one transaction at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tasks: list[tuple[Any, ...]] = []
        self._records: list[Record] = []
        self._leases: dict[int, tuple[int, str]] = {}
        self.note(Kind.OPENED, 0.0, error=json.dumps({"pid": 1}))

    def __enter__(self) -> "JournalMaker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        journal = Journal(self._path)
        journal.write(self._records, self._tasks)
        journal.close()

    def add(
        self, po_number: str, *, at: float = 0.0, priority: int = 5, rows: int = 1, payload: bytes | None = None,
        task_id: str | None = None, **cells: Any,
    ) -> int:  # fmt: skip
        rank = len(self._tasks) + 1
        row = {"po_number": po_number, **cells}
        po = {**row, "rows": [row] * rows, "row_numbers": list(range(2, 2 + rows))}
        blob = payload or json.dumps(po, ensure_ascii=False).encode()
        self._tasks.append((rank, task_id or f"t{rank}", po_number, priority, 3, 5.0, 60.0, BEGUN_AT + at, blob, ""))
        return rank

    def lease(self, rank: int, worker: str, at: float) -> int:
        token = len(self._leases) + 1
        self._leases[token] = rank, worker
        self._records.append(Record(Kind.LEASED, rank, token, BEGUN_AT + at, worker))
        return token

    def end(
        self, kind: Kind, token: int, at: float, *, seconds: float | None = None, result: Any = None, **error: Any
    ) -> None:
        rank, worker = self._leases[token]
        blob = json.dumps(result).encode() if result is not None else None
        told = json.dumps(error) if error else None
        self._records.append(
            Record(
                kind, rank, token, BEGUN_AT + at, worker, seconds, 5.0 if kind is Kind.RETRY else None, None, blob, told
            )
        )

    def note(self, kind: Kind, at: float, rank: int | None = None, error: str | None = None) -> None:
        self._records.append(Record(kind, rank, None, BEGUN_AT + at, error=error))


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection:
        yield connection


def read(path: Path, **told: Any) -> RunHistory:
    """The history in a journal."""
    with opened(path) as connection:
        return history_from_journal(connection, **told)


# ── a simulated run ──────────────────────────────────────────────────────────────────────────────────────────────────


def simulate(path: Path, *, pos: int = 20_000, workers: int = 8, seed: int = 1, is_live: bool = False) -> None:
    """A run of all kinds of luck: slow POs, errors, hangs that are killed, two pauses, a worker that dies."""
    with JournalMaker(path) as journal:
        _Simulation(journal, random.Random(seed), workers).run(pos, is_live)


class _Simulation:
    def __init__(self, journal: JournalMaker, chance: random.Random, workers: int) -> None:
        self._journal = journal
        self._chance = chance
        self._free = [(0.5 + 0.05 * n, n + 1, 1) for n in range(workers)]  # when, slot, generation
        self._due: list[tuple[float, int, int]] = []  # when, rank, attempt

    def run(self, pos: int, is_live: bool) -> None:
        chance = self._chance
        for number in range(pos):
            rank = self._journal.add(
                f"PO-{450000 + number}", at=0.2, supplier=chance.choice(SUPPLIERS), currency="EUR" if number % 9 else "USD",
                amount=f"{chance.lognormvariate(6, 1.4):.2f}", priority=chance.choice((1, 5, 5, 5)),
            )  # fmt: skip
            heapq.heappush(self._due, (0.2, rank, 1))
        rest = pos // 10 if is_live else 0
        pauses = [pos // 2, pos // 3]
        while len(self._due) > rest:
            if pauses and len(self._due) <= pauses[0]:
                pauses.pop(0)
                self._pause()
            self._step(is_live and len(self._due) == rest + 1)

    def _pause(self) -> None:
        at = max(when for when, _, _ in self._free) + 0.1
        self._journal.note(Kind.PAUSED, at, error=json.dumps({"reason": "free memory below 500M"}))
        self._journal.note(Kind.RESUMED, at + 45)
        self._free = [(at + 45.0, slot, generation) for _, slot, generation in self._free]

    def _step(self, is_last_of_live: bool) -> None:
        when, slot, generation = heapq.heappop(self._free)
        due, rank, attempt = heapq.heappop(self._due)
        start = max(when, due)
        worker = f"w{slot}.{generation}"
        token = self._journal.lease(rank, worker, start)
        if is_last_of_live:
            return
        kind, seconds, error = self._fate(rank, attempt)
        end = start + seconds
        if kind is Kind.COMPLETED:
            result: Any = [True, [], seconds, None, {}]
            self._journal.end(kind, token, end, seconds=seconds, result=result)
        else:
            self._journal.end(kind, token, end, seconds=seconds, **error)
        if kind is Kind.RETRY:
            heapq.heappush(self._due, (end + 5.0 * 2 ** (attempt - 1), rank, attempt + 1))
        is_kill = error.get("error_type") in ("TaskTimeout", "WorkerKilled")
        heapq.heappush(self._free, (end + (0.4 if is_kill else 0.002), slot, generation + is_kill))

    def _fate(self, rank: int, attempt: int) -> tuple[Kind, float, dict[str, Any]]:
        chance = self._chance
        luck = chance.random()
        seconds = min(chance.lognormvariate(0.2, 0.7), 55.0)
        again = Kind.RETRY if attempt < 4 else Kind.FAILED
        if luck < 0.01 or rank % 997 == 0:
            module, line, function = chance.choice(
                (("portal", 42, "fetch"), ("portal", 61, "login"), ("tax", 7, "check"))
            )
            stack = STACK.format(module=module, line=line, function=function)
            message = "took longer than 60 s (killed after 60.1 s; the worker ended by SIGKILL)"
            return again, 60.1, {"error_type": "TaskTimeout", "message": message, "stack": stack}
        if luck < 0.012:
            return again, seconds, {"error_type": "WorkerKilled", "message": "the worker was killed by SIGSEGV"}
        if luck < 0.06:
            text = f"HTTP 503 from 'https://portal.example/po/{450000 + rank}' after {seconds:.1f} s"
            return again, seconds, {"error_type": "ConnectionError", "message": text}
        if luck < 0.07:
            text = f"total {chance.randrange(9999)}.50 differs from invoice {chance.randrange(99999)}"
            return Kind.FAILED, seconds, {
                "error_type": "ValueError", "message": text, "traceback": TRACEBACK.format(text=text),
            }  # fmt: skip
        return Kind.COMPLETED, seconds, {}
