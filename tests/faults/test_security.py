"""Rows of the table of threats that no other file covers: who may connect, what is opened, where things are written."""

import ast
import contextlib
import hmac
import json
import os
import pickle
import socket
import sqlite3
import stat
import struct
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

import poqueue.server as server_module
from poqueue import ProcessingTask, TaskQueue
from poqueue.client import QueueClient, connect
from poqueue.errors import ConfigError, JournalError, ServiceError
from poqueue.formula import guard_formula
from poqueue.journal import JOURNAL_NAME
from poqueue.service import QueueService
from poqueue.wire import dial
from tests.faults.batches import Batch
from tests.integration.console import MARK, ROOT, pids_with, poqueue, read_csv, running, tree, wait_until, write_orders
from tests.integration.test_cli import RUN_FILES
from workers.resolved import load_settings
from workers.run_record import read_run_record

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
SOURCES = sorted([*(ROOT / "poqueue").rglob("*.py"), *(ROOT / "workers").rglob("*.py")])


class Shell:
    """Runs a command in whoever opens its pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


# ── E1, E2, E4, E5, E14: the socket ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def service() -> Iterator[QueueService]:
    with QueueService(start_method="fork") as service:
        yield service


def framed(data: bytes) -> bytes:
    return struct.pack("!i", len(data)) + data


def test_a_pickle_from_somebody_without_the_key_is_never_opened(service: QueueService, tmp_path: Path) -> None:
    evil = pickle.dumps((None, "accept_connection", (Shell(tmp_path / "opened"),), {}))
    for words in (framed(evil), framed(b"#CHALLENGE#" + evil), framed(evil) * 3, evil):
        with socket.socket(socket.AF_UNIX) as plug, contextlib.suppress(OSError):
            plug.settimeout(10.0)
            plug.connect(service.address)
            plug.sendall(words)
            plug.sendall(framed(evil))
            plug.shutdown(socket.SHUT_WR)
            while plug.recv(4096):
                pass

    assert service.client().get_queue_status()["status"] == "ACTIVE"
    assert not (tmp_path / "opened").exists()


def test_the_socket_is_a_path_in_a_folder_of_ours_alone_and_the_key_is_long(service: QueueService) -> None:
    folder = Path(service.address).parent

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and folder.stat().st_uid == os.getuid()
    assert stat.S_ISSOCK(os.stat(service.address).st_mode)
    assert len(service.key) == 32
    families = {one.family for one in psutil.Process(service.pid).net_connections("all")}
    assert families == {socket.AF_UNIX}, "nothing listens on a network"
    with QueueService(start_method="fork") as another:
        assert another.key != service.key and another.address != service.address


@pytest.mark.parametrize("size", [2**40, 2**62, 300 * 1024**2])
def test_the_announcement_of_a_giant_message_takes_no_memory(size: int, service: QueueService) -> None:
    queue = service.client()
    queue.get_queue_status()
    before = psutil.Process(service.pid).memory_info().rss
    conn = dial(service.address, service.key, 5.0)
    with contextlib.closing(conn):
        conn.send((None, "accept_connection", ("x",), {}))
        conn.recv()
        os.write(conn.fileno(), struct.pack("!i", -1) + struct.pack("!Q", size))

        with pytest.raises((EOFError, OSError)):  # it hangs up
            conn.recv()

    assert psutil.Process(service.pid).memory_info().rss < before + 10_000_000
    assert queue.get_queue_status()["status"] == "ACTIVE"


def forbid_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hmac.new

    def new(key: bytes, msg: bytes | None = None, digestmod: Any = "") -> Any:
        if digestmod == "md5":
            raise ValueError("[digital envelope routines] unsupported")
        return real(key, msg, digestmod)

    monkeypatch.setattr(hmac, "new", new)


def test_a_system_without_md5_works_or_says_what_is_needed(
    service: QueueService, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_md5(monkeypatch)

    if sys.version_info >= (3, 12):
        assert connect(service.address, service.key).get_queue_status()["status"] == "ACTIVE"
        return
    with pytest.raises(ServiceError, match=r"MD5 .*Python 3\.12"):
        connect(service.address, service.key)


# ── E3: the key ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_text_about_a_run_or_a_client_holds_the_key(service: QueueService) -> None:
    client = service.client()
    secrets = (service.key.hex(), repr(service.key)[2:-1], str(service.key))

    shown = [repr(client), str(client), repr(service), repr(client.begin("get_queue_status").result())]
    for call in (lambda: client.call("_nothing"), lambda: QueueClient("relative", service.key)):
        try:
            call()
        except Exception as error:
            shown += [repr(error), str(error)]

    assert not [text for text in shown if any(secret in text for secret in secrets)]


# ── E6, E15: where things are written, and for whom ──────────────────────────────────────────────────────────────────

HOSTILE = [
    "../../etc/x", "/abs", "a/b", "..", ".", "CON", "a:b", "dot.", "-rf", "x" * 64, "🧾", "é", "e\u0301", "É", "con", "a\\b",
    "'; DROP TABLE tasks; --", "$(touch hacked)", "`touch hacked`", "%2e%2e%2f", "=1+1", "~root", "*", "a b",
]  # fmt: skip


@pytest.mark.once
def test_no_po_number_is_a_way_out_of_the_run_directory(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    orders = write_orders(home / "o.csv", *(f'"{number}",ok' for number in HOSTILE))

    poqueue("run", orders.name, "-j", "2", "--run-dir", "r", cwd=home).check(0)

    assert {path.name for path in tmp_path.iterdir()} == {"home"}
    assert {path.name for path in home.iterdir()} == {"o.csv", "r"}
    folders = [path for path in (home / "r" / "output").iterdir() if path.is_dir()]
    assert len({path.name.casefold() for path in folders}) == len(HOSTILE), "each has a folder of its own"
    assert {path.name for path in (home / "r").iterdir()} <= RUN_FILES
    assert {path.parent for path in (home / "r" / "output").rglob("*") if not path.is_dir()} == set(folders)
    with contextlib.closing(sqlite3.connect(f"file:{home / 'r' / JOURNAL_NAME}?mode=ro", uri=True)) as journal:
        numbers = {json.loads(payload)["po_number"] for (payload,) in journal.execute("SELECT payload FROM tasks")}
    assert numbers == set(HOSTILE)


def modes(folder: Path) -> dict[str, int]:
    found = {}
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):  # its folder decides who gets to it
                found[str(path.relative_to(folder.parent))] = stat.S_IMODE(path.lstat().st_mode)
    return found


def open_to_others(folder: Path) -> dict[str, str]:
    return {name: oct(mode) for name, mode in modes(folder).items() if mode & 0o077}


@pytest.mark.once
def test_everything_in_a_run_directory_is_for_its_owner_also_while_it_is_written(tmp_path: Path) -> None:
    words = (
        "-p",
        "tests.faults.mischief:process",
        "--option",
        f"folder={tmp_path}",
        "--report",
        "x.json",
        "--results",
        "x.csv",
    )
    write_orders(tmp_path / "o.csv", f"SECRET-4711,write_files,{tmp_path}", "B,raise", header="po_number,do,folder")
    command = " ".join(
        [sys.executable, "-m", "workers", "run", "o.csv", "--run-dir", "r", "-j", "1", "--retries", "0", *words]
    )
    with running(["bash", "-c", f"umask 000; exec {command}"], cwd=tmp_path) as run:
        wait_until((tmp_path / "begun").exists, "the PO has begun")
        during = open_to_others(tmp_path / "r")
        names = set(modes(tmp_path / "r"))
        shown = [
            Path(f"/proc/{pid}/{of}").read_bytes() for pid in pids_with(MARK, run.mark) for of in ("environ", "cmdline")
        ]
        (tmp_path / "go").touch()
        run.wait().check(1)

    assert {"r/journal.sqlite", "r/journal.sqlite-wal", "r/run.json", "r/control.json", "r/lock", "r/run.log"} <= names
    assert len(shown) >= 6 and not any(b"SECRET-4711" in text for text in shown), (
        "anybody can list environment and words"
    )
    of_the_processor = "r/output/of the processor"
    assert set(during) <= {of_the_processor}, during
    assert set(open_to_others(tmp_path / "r")) <= {of_the_processor}
    for name in ("x.json", "x.csv"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.once
def test_a_run_directory_made_before_is_closed_to_others(tmp_path: Path) -> None:
    write_orders(tmp_path / "o.csv", "A,ok")
    (tmp_path / "r").mkdir(mode=0o777)
    (tmp_path / "r").chmod(0o777)

    poqueue("run", "o.csv", "-j", "1", "--run-dir", "r", cwd=tmp_path).check(0)

    assert not open_to_others(tmp_path / "r")


# ── E7, E11: text that others would run or take for their own ────────────────────────────────────────────────────────


@pytest.mark.once
def test_formulas_of_pos_and_processors_run_in_no_spreadsheet(tmp_path: Path) -> None:
    cells = ["=1+1", " =x", "\t=x", "+1+cmd", "-x", "@x", "a\n=x", "\u00a0=x"]
    write_orders(
        tmp_path / "o.csv",
        *(f'P{number},"{cell}"' for number, cell in enumerate(cells)),
        "N,-5",
        header="po_number,note",
    )
    poqueue("run", "o.csv", "-j", "1", "--run-dir", "r", "--report", "x.csv", cwd=tmp_path).check(0)

    rows = read_csv(tmp_path / "r" / "results.csv")
    for row, cell in zip(rows, cells, strict=False):
        assert row["note"] == guard_formula(cell) != cell
    assert rows[-1]["note"] == "-5", "a number is a number"


# ── E8: what only looks small ────────────────────────────────────────────────────────────────────────────────────────


BOMB = """
import resource, sys, zipfile
from pathlib import Path
from poqueue.errors import OrdersError
from workers.orders import OrderSource, read_orders
path = Path(sys.argv[1])
read_orders(OrderSource(Path(sys.argv[2])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_orders(OrderSource(path))
except OrdersError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""


def test_a_bomb_of_5_gb_is_refused_by_what_it_says_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "bomb.xlsx"
    write_bomb(path, 5 * 10**9)
    orders = write_orders(tmp_path / "o.csv", "A,ok")

    with running([sys.executable, "-c", BOMB, str(path), str(orders)], cwd=tmp_path) as run:
        said = run.wait().check(0).out

    megabytes, _, message = said.partition(" ")
    assert path.stat().st_size < 100_000 and int(megabytes) < 100
    assert "bomb" in message or "limit" in message


def write_bomb(path: Path, size: int) -> None:
    """A workbook whose sheet says that it unpacks to so many bytes, as one of that size would say."""
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/worksheets/sheet1.xml", bytes(40_000_000))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", min(size, 2**32 - 2))
    path.write_bytes(data)


# ── E9, E10, E12, E13: what the code may not do ──────────────────────────────────────────────────────────────────────


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """Every call in a file, by the line and the dotted name; names that imports have changed are not seen through."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


MAY_UNPICKLE = {  # what comes over the socket after both sides have proved the key, and values of a queue without a journal
    "poqueue/client.py": 1,
    "poqueue/server.py": 1,
    "poqueue/payload.py": 1,
    "poqueue/parent.py": 1,  # what a process is started with comes as multiprocessing's own does, a moment later
}
RUNS_CODE = (
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.Unpickler", "marshal.loads",
    "marshal.load", "yaml.full_load", "yaml.unsafe_load", "joblib.load", "dill.load", "dill.loads",
)  # fmt: skip
KILLS_OTHERS = ("os.killpg", "os.waitpid(-1", "os.wait", "os.wait3", "os.wait4")


def test_nothing_that_runs_code_is_used_on_data() -> None:
    unpickling: dict[str, int] = {}
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        for line, called in calls(path):
            assert called not in RUNS_CODE, f"{name}:{line}: {called}"
            if called in ("pickle.loads", "loads"):
                unpickling[name] = unpickling.get(name, 0) + 1
            if called == "yaml.load":
                assert "Loader=" in path.read_text().splitlines()[line - 1] or name == "workers/config_file.py"
        assert not imports(path) & {
            "shelve",
            "marshal",
            "dill",
            "joblib",
            "pickle.loads",
            "pickle.load",
            "xml.etree",
        }, name
    assert unpickling == MAY_UNPICKLE


def test_a_configuration_is_read_by_a_safe_loader() -> None:
    import yaml

    from workers import config_file

    loaders = [
        one for one in vars(config_file).values() if isinstance(one, type) and issubclass(one, yaml.loader.BaseLoader)
    ]
    loaders += [
        one
        for one in vars(config_file).values()
        if isinstance(one, type) and issubclass(one, yaml.constructor.BaseConstructor)
    ]
    unsafe = (yaml.constructor.FullConstructor, yaml.constructor.UnsafeConstructor)
    assert not [one for one in loaders if issubclass(one, unsafe)]
    used = {called for _, called in calls(Path(config_file.__file__)) if called.startswith("yaml.")}
    assert not {name for name in used if "Full" in name or "Unsafe" in name or name == "yaml.load"}, used


@pytest.mark.once
def test_only_processes_that_are_known_are_waited_for_and_killed() -> None:
    for path in SOURCES:
        text = path.read_text()
        for line, called in calls(path):
            assert called not in KILLS_OTHERS, f"{path}:{line}: {called}"
            if called == "os.waitpid":
                assert (
                    "waitpid(-1" not in text.splitlines()[line - 1] and "waitpid(0" not in text.splitlines()[line - 1]
                )


def test_a_row_cannot_choose_its_processor_or_its_command(tmp_path: Path) -> None:
    fields = "processor,command,options,app_dir,shell,task_timeout,run_dir,__class__,worker_id"
    write_orders(
        tmp_path / "o.csv",
        f"A,os:abort,touch {tmp_path}/hacked,x=1,/tmp,true,1ms,/tmp/elsewhere,x,w9",
        header=f"po_number,{fields}",
    )

    poqueue("run", "o.csv", "-j", "1", "--run-dir", "r", "-v", cwd=tmp_path).check(0)

    assert read_run_record(tmp_path / "r").processor == "workers.processors.dossier:process"
    assert tree(tmp_path).isdisjoint({"hacked", "elsewhere"})
    assert read_csv(tmp_path / "r" / "results.csv")[0]["processor"] == "os:abort", "it is data"


# ── E10, E18: a journal that somebody has changed ────────────────────────────────────────────────────────────────────


def test_a_pickle_in_a_journal_is_not_opened(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with contextlib.closing(_closing(TaskQueue(journal=journal))) as made:
        made.queue.add_task(ProcessingTask("A", {"po_number": "A"}))
    evil = pickle.dumps({"po_number": "A", "x": Shell(tmp_path / "opened")})
    with contextlib.closing(sqlite3.connect(journal)) as database, database:
        database.execute("UPDATE tasks SET payload=?", (evil,))

    with (
        contextlib.suppress(JournalError, ValueError),
        contextlib.closing(_closing(TaskQueue(journal=journal))) as opened,
    ):
        opened.queue.find_task(task_id="A")
        opened.queue.export_queue_report("json")
        opened.queue.get_next_task("w")

    assert not (tmp_path / "opened").exists()


class _closing:
    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self.close = queue.close_queue


@pytest.mark.once
def test_a_crashed_run_whose_journal_holds_a_pickle_is_resumed_or_reported_without_opening_it(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "A,wait", "B,", jobs=1)
    with batch.start() as run:
        batch.wait_begun(1)
        batch.kill_everything(run)
    with contextlib.closing(sqlite3.connect(batch.run_dir / JOURNAL_NAME)) as database, database:
        for task_id, payload in database.execute("SELECT task_id, payload FROM tasks").fetchall():
            evil = pickle.dumps({**json.loads(payload), "x": Shell(tmp_path / "opened")})
            database.execute("UPDATE tasks SET payload=? WHERE task_id=?", (evil, task_id))
    (tmp_path / "go").touch()

    for words in (("report", "r"), ("report", "r", "--format", "json"), ("run", "--resume", "r")):
        batch.poqueue(*words).check_quiet()
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER t AFTER INSERT ON log BEGIN DELETE FROM tasks; END",
        "CREATE VIEW v AS SELECT load_extension('x')",
        "PRAGMA application_id=7",
        "PRAGMA user_version=99",
    ],
)
def test_a_journal_with_more_or_less_in_it_than_ours_is_refused_or_harmless(change: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with contextlib.closing(_closing(TaskQueue(journal=journal))) as made:
        made.queue.add_task(ProcessingTask("A", {"po_number": "A"}))
    with contextlib.closing(sqlite3.connect(journal)) as database, database:
        database.execute(change)

    try:
        opened = _closing(TaskQueue(journal=journal))
    except JournalError as error:
        assert str(journal) in str(error)
        return
    with contextlib.closing(opened):
        assert opened.queue.get_next_task("w") is not None
        opened.queue.add_task(ProcessingTask("B", {"po_number": "B"}))
    with contextlib.closing(_closing(TaskQueue(journal=journal))) as again:
        assert again.queue.find_task(task_id="A") is not None and again.queue.find_task(task_id="B") is not None


# ── E19: what it stands on ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_queue_stands_on_little_more_than_the_standard_library() -> None:
    known = {*sys.stdlib_module_names, "poqueue", "psutil", "yaml"}  # yaml for one format of the report
    for path in (ROOT / "poqueue").rglob("*.py"):
        roots = {name.partition(".")[0] for name in imports(path)}
        assert roots <= known, f"{path.name}: {roots - known}"


@pytest.mark.once
def test_every_dependency_is_named_with_the_least_version_that_will_do() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [
        *project["dependencies"],
        *project["optional-dependencies"]["excel"],
        *project["optional-dependencies"]["download"],
    ]
    assert all(">=" in requirement for requirement in named)
    roots = {name.partition(".")[0] for path in SOURCES for name in imports(path)}
    others = roots - set(sys.stdlib_module_names) - {"poqueue", "workers"}
    packages = {"yaml": "pyyaml", "python_calamine": "python-calamine"}
    packages |= dict.fromkeys(("numpy", "jinja2", "markupsafe"), "bokeh")  # which brings them along
    every = [*named, *project["optional-dependencies"]["html"]]
    names = {requirement.split(">")[0].split("[")[0].strip().lower() for requirement in every}
    assert {packages.get(name, name) for name in others} <= names, others


def test_unknown_settings_are_no_way_to_another_processor() -> None:
    for given in ({"processor": "os:system", "command": "x"}, {"module": "os:system"}):
        with pytest.raises(ConfigError):
            load_settings(given, None, {})


def _never(*args: object) -> NoReturn:
    raise AssertionError("not to be called")


def test_another_user_is_refused_before_a_thread_is_started_for_him(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "peer_uid", lambda plug: os.getuid() + 1)
    monkeypatch.setattr(server_module.QueueServer, "_serve_connection", _never)
    with QueueService(start_method="fork") as service, pytest.raises(ServiceError):
        connect(service.address, service.key)
