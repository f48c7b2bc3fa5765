"""What is known of the POs' attempts, from a sample or an earlier run, summed up for advice and prediction."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from poqueue.adaptive import TIMEOUT_ERROR
from poqueue.errors import OrdersError
from poqueue.simulation import COMPLETED, FAILED, RETRY, TYPICAL_COSTS, Attempt, Costs, History
from workers.safe_text import safe_text
from workers.sample import CRASHES

WAITS_BELOW, COMPUTES_ABOVE = 0.3, 0.7


class AttemptRecord(Protocol):
    """What is read of an attempt, wherever it comes from; the other fields of MeasuredAttempt are used where there."""

    @property
    def seconds(self) -> float | None: ...
    @property
    def outcome(self) -> str: ...
    @property
    def error_type(self) -> str: ...
    @property
    def po_number(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is known of the POs' attempts.

    Attributes:
        source: what was measured, for people.
        seconds: of the attempts that ended well, ascending, as they were beside each other; histories: each as if alone.
        failures: failed attempts by type.
        hung: POs of which an attempt was killed by its timeout, with the longest that one ran.
        retried: POs that were retried, or wait for that.
        recovered, in_vain: those of them that ended well, and that failed for good.
        cpu_share: of the time of all attempts, the part in which they computed; None: not measured.
        rss_bytes: the most that a worker held; None: not measured.
        jobs: how many attempts ran at once.
        repeated: POs of the batch that have the number of another one.
        costs: of the pool besides, as the workers were started.
        forkserver_costs: the same with workers from a forkserver; None: not measured, or they came from one.
        note: what else must be known of it, for people; or empty.
    """

    source: str
    histories: list[History]
    seconds: list[float]
    attempts: int
    failures: dict[str, int]
    hung: dict[str, float]
    retried: int
    recovered: int
    in_vain: int
    cpu_share: float | None
    rss_bytes: int | None
    longest_by_po: dict[str, float]
    costs: Costs = TYPICAL_COSTS
    forkserver_costs: Costs | None = None
    jobs: int = 1
    repeated: int = 0
    note: str = ""

    @property
    def kind(self) -> str:
        """Whether the work waits or computes."""
        if self.cpu_share is None:
            return "unknown"
        if self.cpu_share < WAITS_BELOW:
            return "waits"
        return "computes" if self.cpu_share > COMPUTES_ABOVE else "both"

    @property
    def retries_needed(self) -> int:
        """The most that a PO needed to end well; for one that waits for its retry, as many as it needs at least."""
        return max((len(history) - 1 for history in self.histories if history[-1].outcome == COMPLETED), default=0)


def measured_from_history(attempts: Iterable[AttemptRecord]) -> Measurement:
    """Sum up attempts, PO by PO in order; what was interrupted, or still runs, is left out.

    Raises:
        OrdersError: no attempt ended well, so there is nothing to learn from.
    """
    groups = _by_po(one for one in attempts if one.outcome not in ("interrupted", "running"))
    everything = [one for group in groups for one in group]
    well = sorted(_taken_s(one) for one in everything if one.outcome == "completed" and one.seconds is not None)
    failures = Counter(one.error_type or "error" for one in everything if one.outcome != "completed")
    if not well:
        listed = ", ".join(f"{count} x {safe_text(kind, 60)}" for kind, count in failures.most_common(3))
        raise OrdersError(f"no attempt ended well ({listed or 'there was none'}): there is nothing to learn from")
    usual_s = statistics.median(one.seconds or 0.0 for one in everything if one.outcome == "completed")
    retried = [group for group in groups if len(group) > 1 or _is_open(group)]
    computed = [(getattr(one, "cpu_s", None), one.seconds) for one in everything]
    known = [(cpu_s, seconds) for cpu_s, seconds in computed if cpu_s is not None and seconds]
    return Measurement(
        source="",
        histories=[_history(group, usual_s) for group in groups],
        seconds=well,
        attempts=len(everything),
        failures=dict(failures.most_common()),
        hung=_longest_of(one for one in everything if one.error_type == TIMEOUT_ERROR),
        retried=len(retried),
        recovered=sum(group[-1].outcome == "completed" for group in retried),
        in_vain=sum(group[-1].outcome == "failed" for group in retried),
        cpu_share=sum(cpu_s for cpu_s, _ in known) / sum(seconds for _, seconds in known) if known else None,
        rss_bytes=max((getattr(one, "max_rss_bytes", None) or 0 for one in everything), default=0) or None,
        longest_by_po=_longest_of(one for one in everything if one.outcome == "completed"),
    )


def _by_po(attempts: Iterable[AttemptRecord]) -> list[list[AttemptRecord]]:
    """The attempts of each task; one that ended closes its group, as two tasks may have one PO number."""
    groups: list[list[AttemptRecord]] = []
    open_groups: dict[str, list[AttemptRecord]] = {}
    for attempt in attempts:
        group = open_groups.get(attempt.po_number)
        if group is None:
            group = open_groups[attempt.po_number] = []
            groups.append(group)
        group.append(attempt)
        if attempt.outcome in ("completed", "failed"):
            del open_groups[attempt.po_number]
    return groups


def _is_open(group: Sequence[AttemptRecord]) -> bool:
    """Whether the run has not come to the PO's end: it waits for its retry."""
    return group[-1].outcome == "retry"


def _history(group: Sequence[AttemptRecord], usual_s: float) -> History:
    """For the simulation; a PO whose end nobody knows ends as usual, and does not fail for ever."""
    history = tuple(_as_simulated(one, usual_s) for one in group)
    if not _is_open(group):
        return history
    ending = replace(history[-1], seconds=usual_s, outcome=COMPLETED, retry_after_s=None, ends_worker=False)
    return (*history, ending)


def _taken_s(one: AttemptRecord) -> float:
    """As it was, other attempts beside it."""
    return getattr(one, "taken_s", None) or one.seconds or 0.0


def _longest_of(attempts: Iterable[AttemptRecord]) -> dict[str, float]:
    longest: dict[str, float] = {}
    for one in attempts:
        longest[one.po_number] = max(longest.get(one.po_number, 0.0), _taken_s(one))
    return longest


def _as_simulated(one: AttemptRecord, usual_s: float) -> Attempt:
    """For the simulation; an attempt whose time nobody knows took the usual one."""
    seconds = one.seconds if one.seconds is not None else usual_s
    cpu_s = getattr(one, "cpu_s", None) or 0.0
    outcome = COMPLETED if one.outcome == "completed" else FAILED if getattr(one, "is_final", False) else RETRY
    return Attempt(
        seconds=math.inf if one.error_type == TIMEOUT_ERROR else seconds,
        cpu_share=cpu_s / seconds if seconds else 0.0,
        outcome=outcome,
        retry_after_s=getattr(one, "retry_after_s", None),
        ends_worker=one.error_type in CRASHES,
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value that this share does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100.0) - 1)]
