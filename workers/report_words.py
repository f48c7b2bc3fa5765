"""A run's outcome and its figures in words: the same in every format that people read."""

from decimal import Decimal
from pathlib import PurePath

from workers.history import RunHistory, utc


def run_name(history: RunHistory) -> str:
    """The run directory's name."""
    return PurePath(str(history.run.get("run_dir") or "")).name or "run"


def outcome_word(history: RunHistory) -> str:
    """How it stands, in one word for a heading and a colour."""
    counts = history.counts
    if not history.has_ended:
        return "unfinished"
    if counts["completed"] + counts["failed"] < counts["total"]:
        return "incomplete"
    return "failures" if counts["failed"] else "success"


def outcome_sentence(history: RunHistory) -> str:
    """How it stands, for people."""
    counts, word = history.counts, outcome_word(history)
    total, done, failed = counts["total"], counts["completed"], counts["failed"]
    if word == "success":
        return f"All {total:,} POs succeeded." if total else "There were no POs."
    if word == "failures":
        return f"{failed:,} of {total:,} POs failed; {done:,} succeeded."
    left = total - done - failed
    so_far = f"{done:,} of {total:,} POs succeeded, {failed:,} failed, {left:,} did not end."
    seen = f"{utc(history.until):%Y-%m-%d %H:%M:%S} UTC"
    if history.run.get("is_live"):
        return (
            f"The run goes on; as of {seen} {done:,} of {total:,} POs succeeded, {failed:,} failed, {left:,} are left."
        )
    if word == "unfinished":
        return f"The run was broken off; last seen {seen}. {so_far}"
    return f"The run ended early ({history.run['reason']}): {so_far}"


def balance_sentence(history: RunHistory) -> str:
    """Input rows, by what became of them; says so if they do not add up."""
    a = history.accounts
    parts = [
        f"{a[key]:,} {key.replace('_', ' ')}" for key in ("succeeded", "failed", "duplicate", "invalid", "not_run")
    ]
    ended = sum(a[key] for key in ("succeeded", "failed", "duplicate", "invalid", "not_run"))
    verdict = "" if ended == a["rows"] else f" The accounts do not balance: {ended:,} outcomes for {a['rows']:,} rows."
    return f"{a['rows']:,} input rows = {' + '.join(parts)}.{verdict}"


def not_added_sentence(history: RunHistory) -> str:
    """What the costs do not hold: POs without an amount, and rows without one of the others; empty if that is nothing."""
    nothing = sum(not order.charges for order in history.orders)
    if nothing == len(history.orders):
        return ""
    rows = [order.unread_rows for order in history.orders if order.charges and order.unread_rows]
    text = f"{counted(nothing, 'PO')} without an amount left out. " if nothing else ""
    if rows:
        have = "has" if sum(rows) == 1 else "have"
        of = f"{counted(sum(rows), 'row')} of {counted(len(rows), 'other PO')}"
        text += f"{of} {have} no amount that can be read."
    return text.strip()


def counted(count: int, noun: str) -> str:
    """How many there are of something: 1 PO, 1,234 POs."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def seconds_text(seconds: float) -> str:
    """A duration in the unit that suits it: 0.34 ms, 120 ms, 3.4 s, 2 min 5 s, 3 h 20 min."""
    if seconds <= 0:
        return "0 s"
    if seconds < 0.0095:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    for unit, size, small, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit} {rest} {small}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def share_text(share: float) -> str:
    """A share in per cent; what is not all of it never reads 100 %."""
    percent = share * 100
    return (
        f"{min(percent, 99.9):.1f} %" if 0 < percent < 100 and (percent >= 99 or percent < 10) else f"{percent:.0f} %"
    )


def amount_text(amount: Decimal) -> str:
    """An amount with thousands separated: 1,234,567.50."""
    return f"{amount:,f}"
