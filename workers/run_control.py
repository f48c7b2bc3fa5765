"""How another terminal finds a live run and talks to it: a lock, and a control file with the socket's address and key.

    lock           held by the supervisor as long as it lives, whatever becomes of it
    control.json   mode 0600: address and key of the queue, and which processes belong to the run

Orders go through the queue: pause and resume are its own; the others are posted as notices, which the supervisor reads
as events.
"""

import contextlib
import fcntl
import json
import os
import stat
import struct
import time
from pathlib import Path

from poqueue.client import MIN_KEY_BYTES, QueueClient, connect
from poqueue.errors import ConfigError, ManagerLostError
from poqueue.hints import Any, NamedTuple, StrPath
from poqueue.wire import check_address
from workers.quantities import MAX_JOBS
from workers.whole_file import write_whole

CONTROL_NAME = "control.json"
LOCK_NAME = "lock"
ENDS_WITHIN_S = 3.0
REPLACED_WITHIN_S = 10.0  # with a large journal it takes longer
WORDS = ("drain", "stop", "scale")

_FLOCK = "hhqqi0q"  # Linux: l_type, l_whence, l_start, l_len, l_pid
_locked_here: set[Path] = set()  # a process's own locks do not stop it


class ControlFile(NamedTuple):
    """Address and key (hex) of a run's queue, and its processes; `manager_started` is UTC seconds.

    Attributes:
        born: when the supervisor `pid` was born (process_control), which tells it from one that has got its pid later.
    """

    address: str
    key: str
    run_id: str
    pid: int
    manager_pid: int
    manager_started: float
    born: int = 0  # of a file that an older version has written: nobody's

    def __repr__(self) -> str:
        return f"ControlFile({self.address!r}, run_id={self.run_id!r})"  # never the key

    def write(self, run_dir: StrPath) -> None:
        """Make the file, or replace it whole."""
        write_whole(json.dumps(self._asdict()), Path(run_dir, CONTROL_NAME))


def read_control_file(run_dir: Path) -> ControlFile | None:
    """The control file of a run; None if there is none.

    Raises:
        ConfigError: others may read it, or it is not ours.
    """
    path = run_dir / CONTROL_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path} is not a file")
    with os.fdopen(descriptor) as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigError(f"{path} must belong to you with mode 0600: it holds the key of the run")
        try:
            found_in_it = ControlFile(**json.load(file))
            check_address(found_in_it.address)
            if len(bytes.fromhex(found_in_it.key)) < MIN_KEY_BYTES or type(found_in_it.run_id) is not str:
                raise ValueError
            return found_in_it
        except (ValueError, TypeError):
            raise ConfigError(f"{path} is damaged") from None


class RunLock:
    """One supervisor a run directory. The kernel lets go of the lock when its holder ends, however that happens."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir.resolve() / LOCK_NAME
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: another process holds it, or the file cannot be made.
        """
        if self._path in _locked_here:
            raise ConfigError(f"{self._path.parent} is in use by this process (pid {os.getpid()})")
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: a fork would keep that one
        except OSError as error:
            holder = self._holder()
            self._close()
            if isinstance(error, BlockingIOError | PermissionError) and holder:
                raise ConfigError(f"{self._path.parent} is in use by pid {holder}") from None
            raise ConfigError(f"{self._path} cannot be locked: {error.strerror}") from None
        _locked_here.add(self._path)
        with contextlib.suppress(OSError):  # the disk may be full, and the pid is only told to others
            os.truncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let go; harmless when repeated."""
        if self._fd >= 0:
            _locked_here.discard(self._path)
            os.truncate(self._fd, 0)
            self._close()

    def _holder(self) -> str:
        if self._fd < 0:
            return ""
        return os.pread(self._fd, 32, 0).decode(errors="replace").strip()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_live(run_dir: Path) -> bool:
    """Whether a supervisor holds the run's lock."""
    path = run_dir.resolve() / LOCK_NAME
    if path in _locked_here:
        return True  # and not opened: closing it would let go of the lock
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:  # not by taking it: whoever wants it meanwhile would be refused
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return bool(struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def reach(run_dir: Path) -> QueueClient:
    """A client of a live run's queue; a manager that was lost is waited for, until another one is in its place.

    Raises:
        ConfigError: the run is not live, has no queue yet or any more, or no manager for long.
    """
    deadline, lost = time.monotonic() + REPLACED_WITHIN_S, None
    while time.monotonic() < deadline:
        found = read_control_file(run_dir) if is_live(run_dir) else None
        if found is None:
            raise not_running(run_dir)
        if found != lost:  # the next one is written once the supervisor hears orders again
            try:
                return connect(found.address, bytes.fromhex(found.key))
            except ManagerLostError:
                lost = found
        time.sleep(0.05)
    raise ConfigError(f"{run_dir}: its manager is being replaced; try again in a while")


def not_running(run_dir: Path) -> ConfigError:
    """What is said of a run that has no queue."""
    if is_live(run_dir):
        return ConfigError(
            f"{run_dir} is starting or ending: it reads its orders, or writes its results; try again in a while"
        )
    return ConfigError(f"{run_dir} is not running")


def ends(run_dir: Path) -> bool:
    """Whether a run whose queue has failed somebody is over; its manager ends a moment before it does."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while is_live(run_dir) and (run_dir / CONTROL_NAME).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def order(word: str, value: Any = None) -> str:
    """An order to the supervisor, as the text of a notice."""
    return json.dumps({"word": word, "value": value})


def read_order(text: str) -> tuple[str, Any]:
    """What a notice asks for; an empty word if it is no order."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        said = json.loads(text)
        word, value = said["word"], said.get("value")
        is_count = type(value) is int and 1 <= value <= MAX_JOBS
        if word in WORDS and (is_count or word != "scale"):
            return word, value
    return "", None
