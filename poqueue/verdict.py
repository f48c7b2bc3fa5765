"""What is decided about an attempt, as a value: it can be written down before it is done."""

import json
from collections.abc import Callable, Sequence

from poqueue.config import QueueConfig
from poqueue.entry import Entry
from poqueue.error_log import described
from poqueue.hints import Any, NamedTuple
from poqueue.moves import End
from poqueue.payload import FrozenResult
from poqueue.records import DONE, WAITS, Kind, Record
from poqueue.retry import backoff_s
from poqueue.task import PROCESSING, instance

INTERRUPTED_ERROR = "Interrupted"  # the error_type of an attempt that ended with its run,
CANCELLED_ERROR = "Cancelled"  # and of one, or a task, that somebody has cancelled
MAX_CRASHES = 3  # a PO that was running when the whole run crashed, this often and once more, is taken for the cause


class Verdict(NamedTuple):
    """How a step of a task's life is to end that is no success; `seconds` is how long the attempt worked, if that is known."""

    kind: Kind
    entry: Entry
    details: dict[str, Any] | None = None
    result: bytes | None = None
    delay_s: float = 0.0
    seconds: float | None = None

    def record(self, at: float, now: float) -> Record:
        """The line of the journal's log."""
        entry, waits = self.entry, self.kind in WAITS
        ends_lease = entry.status is PROCESSING and self.kind not in (Kind.CANCEL_ASKED, Kind.CANCELLED)
        return Record(
            self.kind, entry.rank, entry.token if ends_lease else None, at, entry.worker_id, self.seconds,
            self.delay_s if waits else None, now + self.delay_s if waits else None, self.result,
            json.dumps(self.details, ensure_ascii=True) if self.details is not None else None,
        )  # fmt: skip


# What is decided about some tasks: which are done, and what else is to become of others. In this order it is done.
Decisions = tuple[Sequence[End], Sequence[Verdict]]


def records(ends: Sequence[End], verdicts: Sequence[Verdict], at: float, now: float) -> list[Record]:
    """The lines of the journal's log of what is decided: first of those that are done, and then the others."""
    done = [
        instance(Record, (DONE, entry.rank, entry.token, at, entry.worker_id, seconds, stated_s or now - entry.leased,
                          None, result, None))
        for entry, result, stated_s, seconds in ends
    ]  # fmt: skip
    return done + [verdict.record(at, now) for verdict in verdicts]


def reported(entry: Entry, result: FrozenResult, seconds: float | None) -> Decisions:
    """A report with a result: done, or failed by the processor's own word."""
    success, stated_s, message, payload = result
    if success:
        return [(entry, payload, stated_s, seconds)], ()
    details = described({"error_message": message or "failed"})
    return (), [Verdict(Kind.FAILED, entry, details, payload, seconds=seconds)]


def failed_attempt(
    entry: Entry,
    details: dict[str, Any],
    after_s: float | None,
    seconds: float | None,
    config: QueueConfig,
    random: Callable[[], float],
) -> Verdict:
    """Retry while retries are left; else the task failed."""
    if entry.retry_count >= entry.max_retries or entry.is_unwanted:
        return Verdict(Kind.FAILED, entry, details, seconds=seconds)
    delay_s = retry_delay_s(entry, after_s, config, random)
    return Verdict(Kind.RETRY, entry, details, delay_s=delay_s, seconds=seconds)


def retry_delay_s(entry: Entry, after_s: float | None, config: QueueConfig, random: Callable[[], float]) -> float:
    """How long the next retry waits: what was asked for, or the backoff; never beyond the cap."""
    if after_s is None:
        after_s = backoff_s(
            entry.retry_count + 1, entry.retry_delay, config.max_retry_delay, config.retry_jitter, random
        )
    return min(max(0.0, after_s), config.max_retry_delay * (1.0 + config.retry_jitter))


def broken_off(entry: Entry, reason: str, is_crash: bool) -> Verdict:
    """The attempt was running when its run ended. Not its fault, unless that happens again and again."""
    if entry.is_unwanted:
        return Verdict(Kind.FAILED, entry, cancelled())
    if is_crash and entry.crashes >= MAX_CRASHES:
        message = f"was running each time when the run crashed, {entry.crashes + 1} times in a row: {reason}"
        return Verdict(Kind.FAILED, entry, described({"error_type": "Poison", "message": message}))
    details = described({"error_type": INTERRUPTED_ERROR, "message": reason}) | {"is_crash": is_crash}
    return Verdict(Kind.INTERRUPTED, entry, details)


def undone(entry: Entry) -> list[Verdict]:
    """The attempt was never begun: as if the lease had not been. A task that is not to run any more is cancelled then."""
    verdicts = [Verdict(Kind.UNDONE, entry)]
    return [*verdicts, Verdict(Kind.CANCELLED, entry, cancelled())] if entry.is_unwanted else verdicts


def cancelled() -> dict[str, Any]:
    """The error of a task that somebody has cancelled."""
    return described({"error_type": CANCELLED_ERROR, "message": "cancelled"})
