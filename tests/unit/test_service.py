"""The queue in a process of its own: time limits, lost and stopped managers, streams that must not shift, who may connect."""

import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children, connection
from multiprocessing.context import SpawnProcess
from multiprocessing.managers import Server
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from poqueue import ProcessingTask, TaskQueue, TaskResult, TaskStatus, parent
from poqueue import client as client_module
from poqueue import server as server_module
from poqueue.client import QueueClient
from poqueue.errors import CallTimeoutError, ManagerLostError, PoqueueError, QueueError, ServiceError, TaskNotFoundError
from poqueue.server import METHODS, QueueServer
from poqueue.service import ManagerProcess, QueueService, connect
from poqueue.task import Event

ROOT = Path(__file__).parents[2]
SHORT_S = 0.3
SOON_S = 5.0  # "quickly", on a machine that does other things as well

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def wait_until(condition: Callable[[], Any], what: str, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def service() -> Iterator[QueueService]:
    with QueueService(start_method="fork") as service:
        yield service


@pytest.fixture
def queue(service: QueueService) -> QueueClient:
    return service.client()


def task(number: str) -> ProcessingTask:
    return ProcessingTask(number, {"po_number": number})


def is_well(queue: QueueClient) -> bool:
    """The stream of this thread is in step: every answer belongs to its question."""
    return all(queue.find_task(task_id=number) is None for number in ("x", "y")) and (
        queue.get_queue_status()["status"] == "ACTIVE" and queue.get_tasks_by_worker("nobody") == []
    )


# ── time limits ──────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def stopped(service: QueueService) -> Iterator[None]:
    os.kill(service.pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(service.pid).status() == psutil.STATUS_STOPPED, "it is stopped")
    try:
        yield
    finally:
        os.kill(service.pid, signal.SIGCONT)


def test_a_call_to_a_stopped_manager_ends_in_time_and_the_next_one_works(
    service: QueueService, queue: QueueClient
) -> None:
    queue.add_task(task("A"))

    with stopped(service), pytest.raises(CallTimeoutError):
        queue.call("find_task", None, "A", timeout_s=SHORT_S)

    assert is_well(queue)
    assert queue.find_task(task_id="A") is not None


def test_a_call_has_the_time_limit_that_it_asks_for_and_the_next_one_the_usual(queue: QueueClient) -> None:
    pending = queue.begin("has_journal", timeout_s=client_module.REPORT_TIMEOUT_S)
    conn = queue._local.line.stream
    assert limit_of(conn) == client_module.REPORT_TIMEOUT_S

    pending.result()

    assert limit_of(conn) == client_module.CALL_TIMEOUT_S


def limit_of(conn: Any) -> float:
    """Seconds that the kernel gives each read of a connection."""
    with socket.socket(fileno=os.dup(conn.fileno())) as plug:
        seconds, microseconds = struct.unpack("ll", plug.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))
    return float(seconds + microseconds / 1e6)


def test_a_new_connection_to_a_stopped_manager_ends_in_time(
    service: QueueService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CALL_TIMEOUT_S", SHORT_S)
    fresh = service.client()

    with stopped(service), pytest.raises(ServiceError):
        fresh.get_queue_status()

    monkeypatch.undo()
    assert is_well(fresh)


def test_a_request_too_large_for_the_socket_ends_in_time_as_well(service: QueueService, queue: QueueClient) -> None:
    queue.get_queue_status()

    with stopped(service), pytest.raises(ServiceError):
        queue.call("find_task", "x" * 50_000_000, timeout_s=SHORT_S)

    assert is_well(queue)


def test_a_service_whose_manager_is_stopped_can_be_ended(service: QueueService) -> None:
    pid = service.pid
    os.kill(pid, signal.SIGSTOP)

    service.stop()

    assert not psutil.pid_exists(pid)


# ── a lost manager ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_manager_is_told_at_once_and_every_time(service: QueueService, queue: QueueClient) -> None:
    queue.get_queue_status()
    os.kill(service.pid, signal.SIGKILL)
    begun = time.monotonic()

    for _ in range(3):
        with pytest.raises(ManagerLostError):
            queue.get_queue_status()
    with pytest.raises(ManagerLostError):
        connect(service.address, service.key)

    assert time.monotonic() - begun < SOON_S


def test_a_call_that_waits_notices_the_loss(service: QueueService, queue: QueueClient) -> None:
    queue.get_queue_status()
    pid = service.pid
    threading.Timer(SHORT_S, os.kill, (pid, signal.SIGKILL)).start()

    with pytest.raises(ManagerLostError):
        queue.exchange("w", (), 1, 5.0)


def test_a_closed_client_says_so_and_wakes_a_waiting_thread(queue: QueueClient) -> None:
    faults: list[BaseException] = []

    def wait() -> None:
        try:
            queue.read_events(*queue.open_events(), wait_s=5.0)
        except BaseException as error:
            faults.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: queue._connections, "the thread has connected")
    begun = time.monotonic()
    queue.close()
    waiting.join()

    assert time.monotonic() - begun < SOON_S
    assert isinstance(faults[0], ManagerLostError)
    with pytest.raises(ManagerLostError):
        queue.get_queue_status()


def test_a_service_that_cannot_start_leaves_the_address_to_whoever_has_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with QueueService(directory=tmp_path) as service:
        second = QueueService(directory=tmp_path)
        with pytest.raises(ManagerLostError):
            second.start()
        second.stop()

        assert is_well(service.client())


def test_a_service_whose_end_is_broken_off_has_no_manager_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C: whoever waits for all children at the exit would do so for ever."""
    service = QueueService()
    service.start()
    manager = psutil.Process(service.pid)

    def interrupted(*args: object, **more: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("poqueue.service.dial", interrupted)
        service.stop()

    assert not manager.is_running()
    service.stop()


def test_a_manager_that_hangs_while_it_starts_is_killed_and_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poqueue.service.START_LOOKS", 1)
    service = QueueService()

    with pytest.raises(ManagerLostError, match="has not come to listen"):
        service.start(meanwhile=lambda: os.kill(service.pid, signal.SIGSTOP))

    assert active_children() == []


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_a_service_whose_manager_somebody_else_has_waited_for_is_ended(start_method: str) -> None:
    service = QueueService(start_method=start_method)
    service.start()
    os.kill(service.pid, signal.SIGKILL)
    os.waitpid(service.pid, 0)

    assert parent.has_ended(service.process) and service.process.exitcode == parent.UNKNOWN_EXIT
    service.stop()

    assert not os.path.exists(service.address) and active_children() == []


def test_a_client_is_closed_while_threads_come_and_go(service: QueueService) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            client, end, calls = service.client(), threading.Event(), list[int]()

            def call(client: QueueClient = client, end: threading.Event = end, calls: list[int] = calls) -> None:
                with contextlib.suppress(ServiceError):
                    while not end.is_set():
                        client.hang_up()
                        client.has_journal()
                        calls.append(1)

            threads = [threading.Thread(target=call) for _ in range(20)]
            for thread in threads:
                thread.start()
            wait_until(lambda calls=calls: len(calls) > 40, "they have called")  # type: ignore[misc]
            client.close()
            end.set()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)


class Cooperative(socket.socket):
    """As event loops have it that stand in for all sockets of a program: its descriptor never blocks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        os.set_blocking(self.fileno(), False)

    def settimeout(self, value: float | None) -> None:
        super().settimeout(value)
        os.set_blocking(self.fileno(), False)

    def setblocking(self, flag: bool) -> None:
        self.settimeout(None if flag else 0.0)


def test_a_client_works_where_something_else_stands_in_for_sockets(
    service: QueueService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", Cooperative)

    with contextlib.closing(connect(service.address, service.key)) as client:
        assert not client.exchange("w1.1", limit=1, wait_s=0.3).leases
        assert not client.call("exchange", "w1.1", [], 1, 0.3, timeout_s=SOON_S).leases
        client.add_task(task("A"))
        assert [lease.po_number for lease in client.exchange("w1.1", limit=1, wait_s=0.3).leases] == ["A"]


def test_a_first_client_works_where_something_else_stands_in_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", Cooperative)

    with QueueService() as service:
        client = service.client()
        assert client._lines
        assert not client.exchange("w1.1", limit=1, wait_s=0.3).leases
        client.add_task(task("A"))
        assert [lease.po_number for lease in client.exchange("w1.1", limit=1, wait_s=0.3).leases] == ["A"]


def test_a_thread_that_ends_leaves_no_connection(service: QueueService, queue: QueueClient) -> None:
    queue.get_queue_status()
    before = psutil.Process().num_fds()

    for _ in range(50):
        thread = threading.Thread(target=queue.get_queue_status)
        thread.start()
        thread.join()

    assert len(queue._connections) == 1
    assert psutil.Process().num_fds() == before
    wait_until(lambda: psutil.Process(service.pid).num_threads() < 10, "the threads of the manager have ended")


def test_a_client_that_finds_no_thread_is_turned_away_and_others_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may give no thread more for a while."""
    start, refused = threading.Thread.start, list[int]()

    def refuse_three(thread: Any) -> None:
        if getattr(thread._target, "__name__", "") == "_serve_connection" and len(refused) < 3:
            refused.append(1)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_three)
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    with QueueService(start_method="fork") as service:
        for _ in range(3):
            with pytest.raises(ManagerLostError):
                connect(service.address, service.key)

        assert is_well(service.client())


class _Unopenable:
    def __reduce__(self) -> Any:
        return int, ("x",)


def test_a_result_that_cannot_be_opened_ends_no_listening(queue: QueueClient) -> None:
    told: list[str] = []
    queue.set_event_handlers(on_task_complete=lambda task: task.result and told.append(task.task_id))

    for name in "ABC":
        queue.add_task(ProcessingTask(name, {"po_number": name}))
        queue.get_next_task("w")
        queue.complete_task(name, "w", TaskResult(True, [_Unopenable()] if name == "B" else []))

    wait_until(lambda: told == ["A", "C"], "the others are told")


def test_a_manager_that_cannot_start_is_an_error_of_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "queue.sock").write_text("in the way")

    with pytest.raises(ManagerLostError):
        QueueService(start_method="fork", directory=tmp_path).start()


# ── streams that must not shift ──────────────────────────────────────────────────────────────────────────────────────


class Interrupt(BaseException):
    """Raised by a signal handler, as a Ctrl-C would be."""


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Raises Interrupt in the main thread after some seconds."""

    def ring(number: int, frame: Any) -> NoReturn:
        raise Interrupt

    before, hook = signal.signal(signal.SIGALRM, ring), sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None  # it rings there as well, and pytest's hook cannot bear it
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    gc.collect()  # what multiprocessing had in hand just then complains when it is collected, and not in another test
    sys.unraisablehook = hook


def test_an_exception_between_question_and_answer_shifts_nothing(
    service: QueueService, queue: QueueClient, alarm: Callable[[float], None]
) -> None:
    queue.add_task(task("A"))

    for _ in range(3):
        with stopped(service), pytest.raises(Interrupt):
            alarm(0.05)
            queue.find_task(task_id="A")
        assert is_well(queue)


def test_an_exception_while_a_connection_is_made_shifts_nothing(
    service: QueueService, alarm: Callable[[float], None]
) -> None:
    fresh = service.client()
    with stopped(service), pytest.raises(Interrupt):
        alarm(0.05)
        fresh.get_queue_status()

    assert is_well(fresh)


@pytest.mark.skipif(
    sys.version_info[:3] == (3, 12, 1),
    reason="Python 3.12.1 itself crashes, in its garbage collector, after hundreds of exceptions while a client connects",
)
def test_exceptions_at_any_moment_shift_nothing(service: QueueService, alarm: Callable[[float], None]) -> None:
    """Also right after the connection was made, and before it was used."""
    queue = service.client()
    for number in range(150):
        fresh = queue if number % 2 else service.client()
        with contextlib.suppress(Interrupt):  # it may ring as late as while it is switched off
            alarm(0.00002 * number + 0.00001)
            for _ in range(20):
                assert fresh.get_queue_status()["status"] == "ACTIVE"
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert is_well(fresh)


def test_an_exception_after_half_of_the_greeting_does_not_poison_the_connection(
    service: QueueService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is proved, and the answer to accept_connection is not read."""
    fresh = service.client()
    real_dial = client_module.dial

    class Deaf:
        def __init__(self, conn: Any) -> None:
            self._conn = conn

        def recv(self) -> NoReturn:
            raise Interrupt

        def __getattr__(self, name: str) -> Any:
            return getattr(self._conn, name)

    monkeypatch.setattr(client_module, "dial", lambda *args: Deaf(real_dial(*args)))
    with pytest.raises(Interrupt):
        fresh.get_queue_status()
    monkeypatch.undo()

    assert is_well(fresh)


@pytest.mark.parametrize("fault", [EOFError(), ConnectionResetError(), BlockingIOError()])
def test_a_manager_lost_while_it_greets_is_an_error_of_ours(
    fault: Exception, service: QueueService, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = service.client()
    real_dial = client_module.dial

    class Broken:
        def __init__(self, conn: Any) -> None:
            self._conn = conn

        def recv(self) -> NoReturn:
            raise fault

        def __getattr__(self, name: str) -> Any:
            return getattr(self._conn, name)

    monkeypatch.setattr(client_module, "dial", lambda *args: Broken(real_dial(*args)))
    with pytest.raises(ServiceError):
        fresh.get_queue_status()


def test_threads_have_streams_of_their_own(queue: QueueClient) -> None:
    queue.add_tasks([task(f"P{n}") for n in range(50)])
    wrong: list[str] = []

    def look() -> None:
        for n in range(50):
            found = queue.find_task(task_id=f"P{n}")
            if found is None or found.task_id != f"P{n}":
                wrong.append(f"P{n}")

    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


# ── connections that were made with the process ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_the_first_clients_need_not_find_the_manager_and_each_further_thread_does(start_method: str) -> None:
    with QueueService(start_method=start_method, lines=2) as service:
        hidden = f"{service.address}.hidden"
        os.rename(service.address, hidden)
        clients = [service.client() for _ in range(3)]

        assert is_well(clients[0]) and is_well(clients[1])
        with pytest.raises(ManagerLostError):
            clients[2].has_journal()
        with ThreadPoolExecutor(1) as pool, pytest.raises(ManagerLostError):
            pool.submit(clients[0].get_queue_status).result()

        os.rename(hidden, service.address)
        assert all(is_well(client) for client in clients)


def test_a_first_client_that_has_hung_up_finds_the_manager_like_any_other() -> None:
    with QueueService() as service:
        queue = service.client()
        queue.add_task(task("A"))
        queue.hang_up()

        assert queue.find_task(task_id="A") is not None
        with stopped(service), pytest.raises(CallTimeoutError):
            queue.call("find_task", None, "A", timeout_s=SHORT_S)
        assert is_well(queue)


def test_a_first_client_that_hangs_up_before_its_answer_is_nobodys_trouble(capfd: pytest.CaptureFixture[str]) -> None:
    with QueueService(lines=1) as service:
        queue, other = service.client(), service.client()
        assert is_well(queue) and is_well(other)  # the other one has knocked: all threads of the manager are there
        threads = len(os.listdir(f"/proc/{service.pid}/task"))
        queue.begin("exchange_packed", "w", (), 1, 0.1, 1, ())
        queue.close()

        wait_until(lambda: len(os.listdir(f"/proc/{service.pid}/task")) < threads, "its thread ends")
        assert is_well(other)

    assert capfd.readouterr() == ("", "")


def test_a_first_client_whose_connection_has_ended_finds_the_next_manager(tmp_path: Path) -> None:
    with QueueService(journal=tmp_path / "journal") as service:
        queue = service.client()
        os.kill(service.pid, signal.SIGKILL)
        service.process.join()
        service.replace()

        queue.add_task(task("A"))  # not after a call that fails first

        assert queue.has_journal() and queue.find_task(task_id="A") is not None


# ── forks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def in_forked_child(body: Callable[[], object]) -> int:
    """Exit code of a child that runs this: 0 if it returned true."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if body() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_copy_has_a_stream_of_its_own(queue: QueueClient) -> None:
    queue.add_tasks([task(f"P{n}") for n in range(30)])
    conn = queue._local.line.stream

    def look() -> bool:
        return all(queue.find_task(task_id=f"P{n}") is not None for n in range(30))

    assert in_forked_child(lambda: look() and queue._local.line.stream is not conn) == 0
    assert look() and is_well(queue)
    assert queue._local.line.stream is conn


def test_a_forked_copy_that_is_closed_leaves_the_original_alone(queue: QueueClient) -> None:
    assert is_well(queue)
    conn = queue._local.line.stream

    def close() -> bool:
        queue.close()
        return True

    assert in_forked_child(close) == 0
    assert is_well(queue)
    assert queue._local.line.stream is conn


def test_a_forked_copy_leaves_the_first_connection_to_the_original() -> None:
    with QueueService() as service:
        queue, other = service.client(), service.client()

        assert in_forked_child(lambda: is_well(queue) and queue._lines and queue.close() is None) == 0
        assert queue._lines and is_well(queue) and not queue._lines
        assert in_forked_child(lambda: is_well(queue) and is_well(other) and is_well(service.client())) == 0
        assert is_well(queue)


def test_a_forked_copy_of_the_service_ends_nothing(service: QueueService, queue: QueueClient) -> None:
    """A child that unwinds through the owner's `with` block."""
    assert in_forked_child(lambda: service.stop() or True) in (0, 1)

    assert is_well(queue)
    assert is_well(connect(service.address, service.key))


# ── who may connect ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_key_is_refused_without_being_shown(service: QueueService) -> None:
    key = b"0123456789abcdef-wrong"

    with pytest.raises(ManagerLostError) as caught:
        connect(service.address, key)

    assert "wrong" not in str(caught.value) and service.key.hex() not in str(caught.value)
    assert is_well(service.client())


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 5000), ("", 0), "\0abstract", "relative/path", "", None, 7, "/" + "x" * 101]
)
def test_other_kinds_of_address_are_refused(address: Any) -> None:
    with pytest.raises(ValueError):
        QueueClient(address, b"0" * 32)


@pytest.mark.parametrize("key", [b"", b"short", None, "0" * 32])
def test_keys_that_are_none_are_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="key"):
        QueueClient("/tmp/queue.sock", key)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o710, 0o701])
def test_a_socket_that_others_could_reach_is_refused(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)

    with pytest.raises(ValueError, match="0700"):
        QueueService(start_method="fork", directory=tmp_path).start()


def test_silent_connections_hold_up_nobody(service: QueueService, queue: QueueClient) -> None:
    silent = []
    try:
        for _ in range(30):
            plug = socket.socket(socket.AF_UNIX)
            silent.append(plug)
            plug.connect(service.address)
        begun = time.monotonic()
        assert is_well(queue) and is_well(connect(service.address, service.key))
        assert time.monotonic() - begun < SOON_S
    finally:
        for plug in silent:
            plug.close()


def test_a_silent_connection_is_dropped(service: QueueService) -> None:
    with socket.socket(socket.AF_UNIX) as plug:
        plug.settimeout(15.0)
        plug.connect(service.address)
        while plug.recv(4096):  # its challenge, and then the end
            pass


@pytest.mark.parametrize(
    "junk", [b"\xff" * 64, b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff" + b"\x7f" * 8, b"GET / HTTP/1.0\r\n\r\n"]
)
def test_junk_harms_only_its_own_connection(junk: bytes, service: QueueService, queue: QueueClient) -> None:
    with socket.socket(socket.AF_UNIX) as plug:
        plug.connect(service.address)
        plug.sendall(junk)

    assert is_well(queue)


def test_a_client_killed_in_the_middle_of_a_message_harms_nobody(service: QueueService, queue: QueueClient) -> None:
    conn = client_module.dial(service.address, service.key, 5.0)
    conn.send((None, "accept_connection", ("x",), {}))
    conn.recv()
    os.write(conn.fileno(), (1000).to_bytes(4, "big") + b"half")
    conn.close()

    assert is_well(queue)


# ── what may go wrong inside ─────────────────────────────────────────────────────────────────────────────────────────


class Exits:
    """Ends whoever opens it."""

    def __init__(self, error: str) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _raise, (self.error,)


class Unpresentable(Exception):
    """Cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


def _raise(name: str) -> NoReturn:
    raise {
        "SystemExit": SystemExit(0), "KeyboardInterrupt": KeyboardInterrupt(), "EOFError": EOFError(),
        "OSError": OSError(5, "io"), "GeneratorExit": GeneratorExit(), "Unpresentable": Unpresentable(),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "error", ["SystemExit", "KeyboardInterrupt", "EOFError", "OSError", "GeneratorExit", "Unpresentable"]
)
def test_an_argument_that_raises_while_it_is_opened_is_an_error_of_this_call(error: str, queue: QueueClient) -> None:
    with pytest.raises(QueueError):
        queue.call("find_task", Exits(error))

    assert is_well(queue)


def _misbehave(self: TaskQueue, name: str) -> NoReturn:
    _raise(name)


@pytest.mark.parametrize(
    "error", ["SystemExit", "KeyboardInterrupt", "EOFError", "OSError", "GeneratorExit", "Unpresentable"]
)
def test_whatever_a_method_raises_comes_back_as_an_error_of_ours(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken along by the fork; a lost manager would be another error."""
    monkeypatch.setattr(TaskQueue, "retire_worker", _misbehave)
    with QueueService(start_method="fork") as service:
        queue = service.client()

        with pytest.raises(QueueError):
            queue.retire_worker(error)

        assert is_well(queue)


def test_an_answer_that_cannot_be_pickled_is_an_error_of_this_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskQueue, "drain_queue", lambda self, **_: threading.Lock())
    with QueueService(start_method="fork") as service:
        queue = service.client()

        with pytest.raises((QueueError, ValueError, TypeError)):
            queue.drain_queue()

        assert is_well(queue)


def test_an_argument_that_cannot_be_pickled_is_a_value_error_and_sends_nothing(queue: QueueClient) -> None:
    for value in (threading.Lock(), lambda: None, (n for n in ())):
        with pytest.raises(ValueError, match="pickled"):
            queue.call("find_task", value)
        with pytest.raises(ValueError, match="pickled"):
            queue.add_task(ProcessingTask(po_data={"po_number": "A", "x": value}))
        with pytest.raises(ValueError, match="pickled"):
            queue.complete_task("A", "w", TaskResult(True, [value]))

    assert is_well(queue)


def test_the_manager_never_opens_what_it_carries(queue: QueueClient) -> None:
    """A PO whose data end whoever opens them passes through, and harms only its worker."""
    queue.add_task(ProcessingTask("BOMB", {"po_number": "BOMB", "bomb": Exits("SystemExit")}))
    queue.add_task(task("B"), priority=6)

    grant = queue.exchange("w", (), 2)

    assert [lease.task_id for lease in grant.leases] == ["BOMB", "B"]
    assert queue.get_queue_status()["processing_tasks"] == 2
    bomb = queue.find_task(task_id="BOMB")
    assert bomb is not None and bomb.status is TaskStatus.PROCESSING, "what the queue knows can be seen"
    with pytest.raises(SystemExit):
        _ = bomb.po_data
    assert queue.find_task(task_id="B") is not None


def test_a_report_survives_a_po_that_cannot_be_opened(queue: QueueClient) -> None:
    queue.add_task(ProcessingTask("BOMB", {"po_number": "BOMB", "bomb": Exits("OSError")}))
    queue.add_task(task("B"))

    report = queue.export_queue_report("json")

    assert isinstance(report, dict) and len(report["tasks"]) == 2


# ── what is exposed ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_exactly_the_public_methods_are_exposed(service: QueueService, queue: QueueClient) -> None:
    public = {name for name in dir(TaskQueue) if not name.startswith("_")}
    assert set(METHODS) == public
    assert public <= {name for name in dir(QueueClient) if not name.startswith("_")}

    for name in (
        "_cleanup_resources",
        "_ledger",
        "_lock",
        "__class__",
        "__init__",
        "_require",
        "nothing",
        "__reduce__",
    ):
        with pytest.raises(PoqueueError):
            queue.call(name)
    assert is_well(queue)


@pytest.mark.parametrize(
    "name", ["create", "number_of_objects", "debug_info", "get_methods", "incref", "serve_client", "__init__"]
)
def test_what_the_standard_server_offers_beside_is_refused(
    name: str, service: QueueService, queue: QueueClient
) -> None:
    conn = client_module.dial(service.address, service.key, 2.0)
    try:
        conn.send((None, name, (), {}))
        with pytest.raises((EOFError, OSError)):
            conn.recv()
    finally:
        conn.close()
    assert is_well(queue)


def test_the_private_names_of_multiprocessing_that_we_use_are_there(tmp_path: Path) -> None:
    server = Server({}, str(tmp_path / "server"), b"0" * 32, "pickle")
    with server.listener:  # type: ignore[attr-defined]
        assert server.authkey == b"0" * 32  # type: ignore[attr-defined]
    for name in ("accepter", "serve_forever", "serve_client", "shutdown", "dummy", "accept_connection"):
        assert callable(getattr(Server, name))
    assert issubclass(QueueServer, Server)
    for name in ("deliver_challenge", "answer_challenge", "Connection", "wait"):
        assert callable(getattr(connection, name))
    with connection.Listener(str(tmp_path / "s")) as listener:
        assert isinstance(listener._listener._socket, socket.socket)  # type: ignore[attr-defined]


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def owner_script(folder: Path, start_method: str, then: str, first: str = "pass") -> Path:
    """A program that starts a service, tells the manager's pid and address, and then does something else."""
    script = folder / "owner.py"
    script.write_text(
        textwrap.dedent(f"""
            import os
            import time
            from poqueue.service import QueueService
            if __name__ == "__main__":
                {first}
                service = QueueService(start_method={start_method!r})
                service.start()
                print(service.pid, service.address, flush=True)
                {then}
        """)
    )
    return script


NO_PIDFD = "os.pidfd_open = lambda *args: os.close(-1)"  # an OSError, as of a kernel or a sandbox without it


@pytest.mark.parametrize(
    ("start_method", "first"), [("spawn", "pass"), ("forkserver", "pass"), ("fork", "pass"), ("fork", NO_PIDFD)]
)
def test_the_manager_ends_when_its_owner_is_killed(start_method: str, first: str, tmp_path: Path) -> None:
    script = owner_script(tmp_path, start_method, "time.sleep(60)", first)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as owner:
        try:
            assert owner.stdout is not None
            pid, address = owner.stdout.readline().split()
            manager = psutil.Process(int(pid))
        finally:
            owner.kill()
    wait_until(lambda: not manager.is_running() or manager.status() == psutil.STATUS_ZOMBIE, "the manager has ended")
    wait_until(lambda: not os.path.exists(os.path.dirname(address)), "its folder is gone")


@pytest.mark.parametrize("start_method", ["spawn", "forkserver", "fork"])
def test_a_program_that_forgets_to_end_the_manager_ends_all_the_same(start_method: str, tmp_path: Path) -> None:
    script = owner_script(tmp_path, start_method, "pass  # it forgets to end it")

    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    pid, address = done.stdout.split()
    assert done.stderr == ""
    assert not psutil.pid_exists(int(pid))
    assert not os.path.exists(os.path.dirname(address))


def test_signals_of_the_terminal_do_not_end_the_manager(service: QueueService, queue: QueueClient) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        os.kill(service.pid, number)

    assert is_well(queue)
    assert os.getsid(service.pid) == service.pid


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such policy")
def test_a_request_pushes_nobody_aside(service: QueueService, queue: QueueClient) -> None:
    """A worker that tells what it has done works on while the manager hears of it, on as few cores as there may be."""
    queue.get_queue_status()  # a thread serves this client by now

    threads = [int(name) for name in os.listdir(f"/proc/{service.pid}/task")]

    assert len(threads) > 2
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}


def test_a_manager_that_has_no_descriptors_for_first_connections_starts_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = os.listdir("/proc/self/fd")
    free = [os.dup(0) for _ in range(20)]  # a thread that still waits in accept() has one that is listed nowhere
    for number in free:
        os.close(number)
    softly, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        with QueueService(lines=30) as service:
            assert is_well(service.client())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (softly, hard))

    assert len(os.listdir("/proc/self/fd")) <= len(taken) + 1


def test_the_fork_server_is_given_no_more_descriptors_than_it_takes() -> None:
    with QueueService(start_method="forkserver", lines=1000) as service:
        assert is_well(service.client())


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_ending_the_service_leaves_neither_process_nor_file(start_method: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with QueueService(start_method=start_method, lines=3) as service:
            queue = service.client()
            queue.get_queue_status()
            pid, folder = service.pid, os.path.dirname(service.address)
            assert os.stat(folder).st_mode & 0o077 == 0
        assert not psutil.pid_exists(pid) and not os.path.exists(folder)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_manager_process_that_the_system_refuses_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: Any) -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(SpawnProcess, "_Popen", staticmethod(refuse))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ManagerLostError, match="temporarily unavailable") as caught:
        ManagerProcess("spawn", lines=3)

    assert len(os.listdir("/proc/self/fd")) == before and caught.value is not None, "also while the error is held"


def test_the_key_is_in_no_environment_and_on_no_command_line() -> None:
    with QueueService(start_method="spawn") as service:
        service.client().get_queue_status()
        for pid in (os.getpid(), service.pid):
            for name in ("environ", "cmdline"):
                text = Path(f"/proc/{pid}/{name}").read_bytes()
                assert service.key not in text and service.key.hex().encode() not in text
        assert service.key.hex() not in repr(service.client()) and repr(service.key) not in repr(
            vars(service.client()).get("_address")
        )


def test_event_handlers_run_in_the_clients_process(queue: QueueClient) -> None:
    heard: list[Any] = []
    queue.set_event_handlers(
        on_task_complete=lambda done: heard.append((os.getpid(), done.task_id)),
        on_queue_empty=lambda: heard.append("empty"),
    )
    queue.add_task(task("A"))
    leased = queue.get_next_task("w")
    assert leased is not None
    queue.complete_task("A", "w", TaskResult(True))

    wait_until(lambda: len(heard) == 2, "both are heard")
    assert heard == [(os.getpid(), "A"), "empty"]


def complete_one(queue: QueueClient) -> None:
    task_id = queue.add_task(ProcessingTask(po_data={"po_number": "A"}))
    queue.get_next_task("w")
    queue.complete_task(task_id, "w", TaskResult(True))


def held_events(queue: QueueClient) -> list[Event]:
    """What the queue keeps for somebody: a reader that comes now could still have it."""
    reader, _ = queue.open_events()
    held = queue.read_events(reader, 0)
    queue.close_events(reader)
    return held


def test_a_handler_that_takes_long_is_not_taken_for_one_that_hangs(
    queue: QueueClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue hears how far it is long before it has called all that it was told of at once."""
    monkeypatch.setattr(client_module, "ASK_AGAIN_S", 0.0)
    has_begun, go_on = threading.Event(), threading.Event()
    held_at_last: list[list[str]] = []

    def act(done: ProcessingTask) -> None:
        if done.task_id == "P0":
            has_begun.set()
            assert go_on.wait(10.0)
        if done.task_id == "P2":
            held_at_last.append([event.task.task_id for event in held_events(queue) if event.task is not None])

    def complete(number: str) -> None:
        queue.add_task(task(number))
        queue.get_next_task("w")
        queue.complete_task(number, "w", TaskResult(True))

    queue.set_event_handlers(on_task_complete=act)
    complete("P0")
    assert has_begun.wait(10.0)
    complete("P1")
    complete("P2")
    go_on.set()

    wait_until(lambda: held_at_last, "the last one is told")
    assert held_at_last == [["P2"]]


def listens(client: QueueClient) -> None:
    client.set_event_handlers(on_queue_full=lambda: None)


def listens_and_is_closed(client: QueueClient) -> None:
    listens(client)
    client.close()


def reads_and_is_killed(client: QueueClient) -> None:
    in_forked_child(lambda: client.open_events() and os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("come_and_go", [listens_and_is_closed, reads_and_is_killed])
def test_no_event_is_held_for_a_client_that_is_gone(
    come_and_go: Callable[[QueueClient], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "READ_ON_S", SHORT_S)
    with QueueService(start_method="fork") as service:
        queue = service.client()
        come_and_go(service.client())
        complete_one(queue)

        wait_until(lambda: not held_events(queue), "nothing is held")


def test_no_event_is_held_for_a_client_that_has_no_handlers_any_more(
    service: QueueService, queue: QueueClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = service.client()
    listens(client)
    client.set_event_handlers(on_queue_full=None)
    complete_one(queue)

    wait_until(lambda: not held_events(queue), "nothing is held", server_module.READ_ON_S / 2)

    heard: list[str] = []
    client.set_event_handlers(on_queue_empty=lambda: heard.append("empty"))
    complete_one(queue)
    wait_until(lambda: heard == ["empty"], "new handlers are called, and once")


def test_handlers_hear_again_after_their_reader_was_closed_and_the_log_says_that_they_did_not(
    service: QueueService, queue: QueueClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "REOPEN_S", 0.001)
    client, heard = service.client(), list[str]()
    before, _ = queue.open_events()
    client.set_event_handlers(on_queue_empty=lambda: heard.append("empty"))
    complete_one(queue)
    wait_until(lambda: heard == ["empty"], "it is heard")

    queue.close_events(before + 1)  # as the manager does for a connection that is gone
    complete_one(queue)
    wait_until(lambda: f"reader {before + 1} is closed" in caplog.text, "it is told that nothing was heard")

    def is_heard() -> bool:
        complete_one(queue)
        return len(heard) > 1

    wait_until(is_heard, "it hears again")


def test_a_client_says_whether_its_handler_is_at_work_and_not_of_one_that_hangs(
    queue: QueueClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    queue.set_event_handlers(on_task_complete=lambda _: go_on.wait(10.0))
    assert not queue.is_acting()

    complete_one(queue)
    wait_until(queue.is_acting, "it is at work")
    with monkeypatch.context() as patch:
        patch.setattr(client_module, "SILENCE_S", 0.0)
        assert not queue.is_acting()
    assert queue.is_acting()

    go_on.set()
    wait_until(lambda: not queue.is_acting(), "it has ended")


class GappedClient(QueueClient):
    """Of a queue that has dropped the events between these."""

    def __init__(self, *sequences: int) -> None:
        super().__init__("/nobody", b"0" * 32)
        self._sequences = sequences

    def read_events(self, reader: int, after: int, *words: Any, **more: Any) -> list[Event]:
        found, self._sequences = self._sequences, ()
        self._is_closed = not found
        return [Event(sequence, "empty", None, "") for sequence in found]

    def hear(self) -> None:
        self._listener = threading.current_thread()
        self._listen(1, 0)


def test_each_event_that_handlers_have_missed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    GappedClient(1, 2, 4, 5, 8).hear()

    missed = [record.getMessage() for record in caplog.records]
    assert missed == [f"{count} events were dropped before they were read" for count in (1, 2)]


def test_what_one_connection_has_begun_to_read_another_reads_on(service: QueueService, queue: QueueClient) -> None:
    first = service.client()
    reader, after = first.open_events()
    complete_one(queue)
    first.close()

    assert [event.kind for event in queue.read_events(reader, after)] == ["completed", "empty"]


def test_handlers_hear_again_however_long_the_manager_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "REOPEN_S", 0.001)
    dial, tries, heard = client_module.dial, list[float](), list[str]()
    monkeypatch.setattr(client_module, "dial", lambda *words: tries.append(1) or dial(*words))
    with QueueService(journal=tmp_path / "journal") as service:
        queue = service.client()
        queue.set_event_handlers(on_task_complete=lambda done: heard.append(done.task_id))
        wait_until(lambda: len(tries) == 1, "the handlers' thread reads")  # of the calls' there is a line already
        os.kill(service.pid, signal.SIGKILL)
        wait_until(lambda: len(tries) > 100, "it goes on trying")
        service.replace()
        queue.hang_up()

        wait_until(lambda: complete_one(queue) or heard, "a handler is called")

    assert "no events are heard until the queue answers again" in caplog.text


def test_contract_errors_cross_whole(queue: QueueClient) -> None:
    with pytest.raises(TaskNotFoundError, match="no task has the id 'x'"):
        queue.retry_task("x", {})
    with pytest.raises(ValueError, match="invalid"):
        queue.add_task(ProcessingTask(po_data={}))
    queue.add_task(task("A"))
    assert queue.get_tasks_by_status(TaskStatus.PENDING)[0].task_id == "A"


CYCLES = """
    import gc, os, subprocess, sys, tempfile, threading
    from pathlib import Path
    from poqueue import ProcessingTask, TaskQueue, TaskResult
    from poqueue.client import QueueClient
    from poqueue.server import QueueServer

    def use(client, turn):
        client.add_tasks([ProcessingTask(f"t{turn}-{n}", {"po_number": f"{turn}-{n}"}) for n in range(20)])
        wrong = (
            lambda: client.add_task(ProcessingTask(f"t{turn}-0", {"po_number": "again"})), lambda: client.call("nonsense"),
            lambda: client.call("exchange_packed", "w", [("x", 1)]), lambda: client.complete_task("x", "w", TaskResult(True)),
        )
        for call in wrong:
            try:
                call()
            except Exception:
                continue
            raise AssertionError("it is refused")
        client.complete_task(client.get_next_task("w1").task_id, "w1", TaskResult(True))
        client.retry_task(client.get_next_task("w1").task_id, {"error_type": "X", "message": "no"})
        reader, after = client.open_events()
        client.exchange("w2", [], 5, 0.0, 1)
        client.get_queue_status(), client.get_performance_metrics(), client.get_error_summary(), client.get_report_parts()
        client.read_events(reader, after)
        if turn % 2:
            client.close_events(reader)
        client.clear_queue()

    if len(sys.argv) > 1:
        for turn in range(20):
            client = QueueClient(sys.argv[1], b"k" * 32)
            use(client, turn)
            client.close()
    else:
        with tempfile.TemporaryDirectory() as folder:
            address = str(Path(folder, "queue.sock"))
            journal = Path(folder, "journal") if is_recorded else None
            server = QueueServer(TaskQueue(open_task=lambda record: record, journal=journal), address, b"k" * 32)
            threading.Thread(target=server.accepter, daemon=True).start()
            gc.collect()
            gc.disable()
            subprocess.run([sys.executable, __file__, address], check=True)
            gc.unfreeze()
            print("cycles:", gc.collect())
"""


@pytest.mark.parametrize("is_recorded", [False, True])
def test_nothing_that_is_asked_of_the_manager_leaves_cycles_behind(is_recorded: bool, tmp_path: Path) -> None:
    """It has its garbage collector look at no task (gc.freeze): what has come in between would never be found."""
    script = tmp_path / "script.py"
    script.write_text(f"is_recorded = {is_recorded}\n{textwrap.dedent(CYCLES)}")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    run = subprocess.run(
        [sys.executable, str(script)], env=environ, capture_output=True, text=True, timeout=60, check=True
    )

    assert run.stdout.splitlines()[-1] == "cycles: 0"
