"""The journal: every accepted change of a queue, in one SQLite file, before the caller is told of it.

    tasks   what was added, never changed, and after which line of the log
    log     what happened to it, in order, only ever appended

Whoever reads both from the beginning stands where the queue stood (replay.py); so does whoever stops after any commit.
The file is in WAL mode and has exactly one connection: locking_mode=EXCLUSIVE keeps everybody else out, and the lock dies
with its holder. What was committed survives the kill of any process; with durability "full" also the loss of power.

Source: sqlite.org on WAL, locking_mode, synchronous, application_id.
"""

import contextlib
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from poqueue import failpoint
from poqueue.errors import JournalError, JournalGoneError
from poqueue.hints import Any, StrPath
from poqueue.records import NAME_ENDED, Record

APPLICATION_ID = 0x504F5155  # "POQU"
SCHEMA_VERSION = 1
DURABILITIES = ("normal", "full")
BUSY_S = 5.0
FILE_CHECK_S = 1.0
JOURNAL_NAME = "journal.sqlite"

_SCHEMA = """
CREATE TABLE tasks(
    rank INTEGER PRIMARY KEY, task_id TEXT NOT NULL, po_number TEXT NOT NULL, priority INTEGER NOT NULL,
    max_retries INTEGER NOT NULL, retry_delay REAL NOT NULL, task_timeout REAL NOT NULL, created_at REAL NOT NULL,
    payload BLOB NOT NULL, po_group TEXT NOT NULL, after INTEGER NOT NULL);
CREATE TABLE log(
    seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, rank INTEGER, token INTEGER, at REAL NOT NULL, worker TEXT,
    seconds REAL, delay_s REAL, due REAL, result BLOB, error TEXT);
"""
_ADD_TASK = "INSERT INTO tasks VALUES(?,?,?,?,?,?,?,?,?,?,?)"
_ADD_RECORD = (
    "INSERT INTO log(kind, rank, token, at, worker, seconds, delay_s, due, result, error) VALUES(?,?,?,?,?,?,?,?,?,?)"
)


class Journal:
    """The open journal of one queue. Not thread-safe: the queue holds the lock.

    It belongs to the process that opened it. A program that forks opens it after the fork: in a child every use raises
    JournalError, and close does nothing.

    Args:
        path: the file; in a folder of this user alone.
        durability: "normal" survives the end of any process, "full" also a loss of power, at a disk flush a commit.
        must_exist: True: opened, never made; False: made, never opened; None: whichever.
        any_version: take a file of another schema version, if its tables have the columns of this one.

    Raises:
        JournalError: it cannot be opened, is no journal of ours, is damaged, or is used by somebody else.
    """

    def __init__(
        self, path: StrPath, *, durability: str = "normal", must_exist: bool | None = None, any_version: bool = False
    ) -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"durability must be one of {', '.join(DURABILITIES)}, got {durability!r}")
        self.path = Path(path)
        self._pid = os.getpid()
        self._any_version = any_version
        self._next_file_check = 0.0
        self.has_written = False  # the last write that was called for
        exists = os.path.lexists(self.path)
        if must_exist is True and not exists:
            raise JournalError(f"{self.path}: there is no journal")
        if must_exist is False and exists:
            raise JournalError(f"{self.path}: there is a journal already")
        self.is_new = not exists
        if self.is_new:
            self._make_file()
        else:
            check_file(self.path)
        self._db = self._connect(durability)
        self._lines = int(next(self._read("SELECT ifnull(max(seq), 0) FROM log"))[0])
        self._identity = _identity_of(self.path)
        self._wal = Path(f"{self.path}-wal")  # there until the one connection is closed
        self._wal_identity = _identity_of(self._wal)
        _open_here[self._identity] = self

    def write(self, records: Sequence[Record] = (), tasks: Iterable[tuple[Any, ...]] = ()) -> None:
        """Append in one transaction; when this returns, it is there to stay.

        Raises:
            JournalError: nothing was written; the text names path, reason and free space.
            JournalGoneError: the file, or its -wal file, was deleted or replaced.
            ValueError: it holds something that no database takes: broken Unicode, a number beyond 64 bits, a list.
        """
        self.has_written = False
        self._check_still_there()
        db, before = self._db, -1  # as long as nothing can have been written, and for good if it is closed
        self.has_written = True  # unless it is known not to be so
        try:
            before = db.total_changes
            failpoint.hit("journal.write")
            db.execute("BEGIN")
            if tasks:
                lines = self._lines
                db.executemany(_ADD_TASK, [(*row, lines) for row in tasks])
            if records:
                db.executemany(
                    _ADD_RECORD, [(int(record[0]), *record[1:]) for record in records]
                )  # an IntEnum binds slowly
            failpoint.hit("journal.before_commit")
            db.execute("COMMIT")
        except BaseException as error:  # whatever it is: a transaction left open would refuse all that follow
            is_ours = isinstance(error, sqlite3.Error)
            self.has_written = not is_ours and not db.in_transaction and before not in (-1, db.total_changes)
            self._roll_back()
            if self.has_written:  # it came from a signal handler, after the last step
                raise
            if isinstance(error, UnicodeError | OverflowError) or (before >= 0 and _is_of_value(error)):
                raise ValueError(f"invalid value: it cannot be written down ({error})") from None
            if isinstance(error, sqlite3.Error | OSError):
                raise JournalError(f"{self.path} cannot be written: {error} ({self._free()})") from None
            raise
        self._lines += len(records)
        failpoint.hit("journal.after_commit")

    def tasks(self) -> Iterator[tuple[Any, ...]]:
        """What was added, by rank: the columns of `tasks`; the last one says how many lines of the log came before."""
        return self._read("SELECT * FROM tasks ORDER BY rank")

    def records(self) -> Iterator[Record]:
        """What happened, in order."""
        rows = self._read(
            "SELECT kind, rank, token, at, worker, seconds, delay_s, due, result, error FROM log ORDER BY seq"
        )
        return (Record(*row) for row in rows)

    def named_again(self, after: int) -> dict[int, int]:
        """Of which tasks, by rank, the log says after so many lines what may be said of one that has ended; and how often."""
        kinds = ", ".join(f"{kind:d}" for kind in NAME_ENDED)
        asked = f"seq > {after:d} AND kind IN ({kinds}) AND token IS NULL"
        return dict(self._read(f"SELECT rank, count(*) FROM log WHERE {asked} GROUP BY rank"))

    def last_at(self) -> float:
        """When the latest line was written, UTC seconds; 0 if there is none."""
        return float(next(self._read("SELECT at FROM log ORDER BY seq DESC LIMIT 1"), (0.0,))[0])

    def copy_to(self, path: StrPath) -> None:
        """A consistent copy, which others may open, while this one goes on.

        Raises:
            JournalError: the copy cannot be written.
        """
        self._check_is_ours()
        try:
            with contextlib.suppress(FileExistsError):
                _make_private(path)
            with contextlib.closing(sqlite3.connect(path)) as target:
                self._db.backup(target)
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"{path} cannot be written: {error}") from None

    def close(self) -> None:
        """Bring everything into the one file and let go of it; harmless when repeated."""
        if self._pid != os.getpid():
            return
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        self._next_file_check = math.inf  # whoever writes on is told that it is closed, not that its -wal file is gone
        _open_here.pop(self._identity, None)

    # --- opening

    def _make_file(self) -> None:
        try:
            _make_private(self.path)
        except OSError as error:
            raise JournalError(f"{self.path}: the journal cannot be made: {error.strerror}") from None

    def _connect(self, durability: str) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: the journal cannot be opened: {error}") from None
        try:
            db.execute("PRAGMA trusted_schema=OFF")
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA synchronous={durability.upper()}")
            db.execute("BEGIN EXCLUSIVE")
            if self.is_new:
                _make_schema(db)
            db.execute("COMMIT")
            if not self.is_new:
                _check_content(db, self.path, any_version=self._any_version)
        except BaseException as error:
            db.close()
            if self.is_new:
                self.path.unlink(missing_ok=True)
            if isinstance(error, sqlite3.Error):
                raise JournalError(_opening_error(self.path, error)) from None
            raise
        return db

    def _read(self, query: str) -> Iterator[tuple[Any, ...]]:
        self._check_is_ours()
        try:
            cursor = self._db.execute(query)
            while (row := cursor.fetchone()) is not None:  # `yield from` would close the cursor of a closed database
                yield row
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: the journal is damaged: {error}") from None

    # --- looking after it

    def _check_is_ours(self) -> None:
        if self._pid != os.getpid():
            raise JournalError(f"{self.path}: {_OPENED_BEFORE_FORK}")

    def _leave_to_parent(self) -> None:
        """Called in a forked child. Not even its end may close the connection: SQLite would take the child for the last user
        and delete the -wal file, and the parent would write on into that, without an error, and in vain.
        """
        import ctypes  # nobody else needs it

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))  # what a module holds is let go of at the end as well
        self._next_file_check = 0.0  # with the next write

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _check_still_there(self) -> None:
        """A deleted file can be written to without an error, and everything written is lost."""
        now = time.monotonic()
        if now < self._next_file_check:
            return
        self._check_is_ours()
        for path, identity in ((self.path, self._identity), (self._wal, self._wal_identity)):
            if _identity_of(path) != identity:
                self._save_from_deleted_wal()
                raise JournalGoneError(f"{path} was deleted or replaced; nothing more can be recorded")
        self._next_file_check = now + FILE_CHECK_S

    def _save_from_deleted_wal(self) -> None:
        """Bring what was told into the file itself; but not beside another -wal file, which the next opening would read."""
        if not os.path.lexists(self._wal):
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint")

    def _free(self) -> str:
        try:
            return f"{shutil.disk_usage(self.path.parent).free:,} bytes free"
        except OSError:
            return "free space unknown"


_OPENED_BEFORE_FORK = "the journal was opened before this process was forked; open it after the fork, in one process"
_open_here: WeakValueDictionary[tuple[int, int], Journal] = WeakValueDictionary()  # by device and inode


def _leave_all_to_parent() -> None:
    for journal in list(_open_here.values()):
        journal._leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)


def check_file(path: Path) -> None:
    """Whether this can be a journal at all; told apart, since each calls for something else.

    Raises:
        JournalError: missing, empty, no SQLite file, or open in this process: to look into it would let go of its lock, as
            the system drops a process's locks on a file when any of its descriptors of that file is closed.
    """
    user = _open_here.get(_identity_of(path))
    if user is not None:
        user._check_is_ours()
        raise JournalError(f"{path}: the journal is in use by this process")
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise JournalError(f"{path}: there is no journal") from None
    except OSError as error:
        raise JournalError(f"{path}: the journal cannot be read: {error.strerror}") from None
    if not head:
        raise JournalError(f"{path}: the journal is empty (0 bytes): its run had hardly begun, or what it held is lost")
    if head != b"SQLite format 3\0":
        raise JournalError(f"{path}: is not a journal (no SQLite file)")


def _identity_of(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _make_private(path: StrPath) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _make_schema(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";"):
        if statement.strip():
            db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _check_content(db: sqlite3.Connection, path: Path, *, any_version: bool) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise JournalError(f"{path}: is an SQLite file, but not a journal of poqueue")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION and not (any_version and _has_our_columns(db)):
        raise JournalError(
            f"{path}: has schema version {version}, this poqueue reads version {SCHEMA_VERSION}; "
            "use the version of poqueue that wrote it" + (", for its tables are other ones" if any_version else "")
        )
    (own_code,) = db.execute("SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone()
    if own_code:
        raise JournalError(f"{path}: holds triggers or views, which no journal of poqueue has")
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise JournalError(f"{path}: the journal is damaged: {verdict}")


def _has_our_columns(db: sqlite3.Connection) -> bool:
    with contextlib.closing(sqlite3.connect(":memory:")) as ours:
        _make_schema(ours)
        tables = ("tasks", "log")
        return all(_columns(db, table) == _columns(ours, table) for table in tables)


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA table_info({table})")]


def _is_of_value(error: BaseException) -> bool:
    """Whether an open database says that what it was given cannot be kept by any; a rank that is there already can be."""
    is_nothing = getattr(error, "sqlite_errorname", "") == "SQLITE_CONSTRAINT_NOTNULL"
    return is_nothing or isinstance(error, sqlite3.ProgrammingError | sqlite3.DataError)


def _opening_error(path: Path, error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return f"{path}: the journal is in use by another process"
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        return f"{path}: the journal is damaged: {error}"
    return f"{path}: the journal cannot be opened: {error}"
