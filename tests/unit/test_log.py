"""What the run's log and the screen make of log records."""

import json
import logging
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from workers.log import RunLogging, ShieldedLogger, log_each

EACH = (
    {"worker_id": "w1.1", "po_number": "A\nB", "task_id": "t1", "attempt": 1},
    {"worker_id": "w2.1", "po_number": "\ud800", "task_id": "t2", "attempt": 2},
    {"worker_id": None, "po_number": "", "task_id": "t3", "attempt": 0},
)


def lines_of(tmp_path: Path, *, as_json: bool = False, **extra: Any) -> tuple[list[dict[str, Any]], list[str]]:
    shown: list[str] = []
    with RunLogging(tmp_path / "run.log", "r", shown.append, verbosity=2, as_json=as_json):
        logging.getLogger("workers.supervisor").debug("completed", extra=extra)
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()], shown


@pytest.mark.parametrize("as_json", [False, True])
def test_a_record_about_many_pos_is_a_line_for_each(as_json: bool, tmp_path: Path) -> None:
    lines, shown = lines_of(tmp_path, as_json=as_json, each=EACH)

    assert [line["task_id"] for line in lines] == ["t1", "t2", "t3"]
    assert {(line["message"], line["level"], line["run"]) for line in lines} == {("completed", "DEBUG", "r")}
    assert len(shown) == 3 and not any("\n" in line for line in shown)
    assert ("[w1.1]" in shown[0], "w2.1" in shown[1]) == (not as_json, True)


def test_a_po_that_no_worker_has_had_is_shown_without_one(tmp_path: Path) -> None:
    _, [shown] = lines_of(tmp_path, worker_id=None, po_number="A", attempt=0)

    assert shown.endswith(" debug   [A] completed")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_such_a_line_says_what_a_record_about_this_po_alone_says(number: int, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    many, shown = lines_of(tmp_path, each=EACH)
    [alone], shown_alone = lines_of(tmp_path / "alone", **EACH[number])

    assert many[number] | {"time": ""} == alone | {"time": ""}
    assert list(many[number]) == list(alone)
    assert [shown[number][8:]] == [line[8:] for line in shown_alone]


def test_what_belongs_to_one_po_stands_behind_it(tmp_path: Path) -> None:
    [line], _ = lines_of(tmp_path, po_number="A", stack="where it hung")

    assert list(line) == ["time", "level", "logger", "message", "run", "po_number", "stack"]


def test_of_what_a_full_disk_does_not_take_no_line_is_broken(tmp_path: Path) -> None:
    each = [{"worker_id": "w1.1", "po_number": f"PO-{n:05}", "task_id": f"t{n}", "attempt": 1} for n in range(750)]
    path, logger = tmp_path / "run.log", logging.getLogger("workers.supervisor")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLogging(path, "r", lambda line: None, verbosity=0, as_json=False):
        log_each(logger, logging.DEBUG, "completed", each[:250])
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20_000, limits[1]))
            log_each(logger, logging.DEBUG, "completed", each[250:500])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        log_each(logger, logging.DEBUG, "completed", each[500:])

    found = [json.loads(line)["task_id"] for line in path.read_text().splitlines()]
    told = [ids["task_id"] for ids in each]
    assert found == [task_id for task_id in told if task_id in found]  # in order, each once
    assert found[:250] == told[:250] and found[-250:] == told[500:]
    assert 550 < len(found) < 750


def state_of(*names: str) -> list[tuple[int, bool, bool, int]]:
    loggers = map(logging.getLogger, names)
    return [(one.level, one.propagate, one.disabled, len(one.handlers)) for one in loggers]


def test_two_runs_at_once_have_a_log_each_and_leave_the_loggers_as_they_were(tmp_path: Path) -> None:
    before = state_of("poqueue", "workers")
    first, second = (
        RunLogging(tmp_path / name, name, lambda line: None, verbosity=0, as_json=False) for name in ("first", "second")
    )
    logger = logging.getLogger("workers.supervisor")

    with ThreadPoolExecutor(1) as thread:
        with first:
            thread.submit(second.__enter__).result()
            logger.info("of the first")
            thread.submit(logger.info, "of the second").result()
        thread.submit(logger.info, "of the second alone").result()
        thread.submit(second.__exit__).result()

    told = {
        path.name: [json.loads(line)["message"] for line in path.read_text().splitlines()]
        for path in tmp_path.iterdir()
    }
    assert told == {"first": ["of the first"], "second": ["of the second", "of the second alone"]}
    assert state_of("poqueue", "workers") == before


@pytest.mark.parametrize("name", ["poqueue", "workers", "workers.supervisor"])
def test_a_logger_that_was_disabled_on_the_way_is_heard_for_the_time_of_the_run(name: str, tmp_path: Path) -> None:
    logger, other = logging.getLogger(name), logging.getLogger("workersmith")
    logger.disabled = other.disabled = True
    with RunLogging(tmp_path / "run.log", "r", lambda line: None, verbosity=0, as_json=False):
        logger.info("heard")
        is_other_disabled = other.disabled
    is_disabled, logger.disabled, other.disabled = logger.disabled, False, False

    assert is_disabled and is_other_disabled
    assert '"heard"' in (tmp_path / "run.log").read_text()


def test_handlers_of_the_program_get_a_record_for_each(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("workers.supervisor")
    with caplog.at_level(logging.DEBUG, logger.name):
        log_each(logger, logging.DEBUG, "completed", EACH)

    found = [(record.message, vars(record)["task_id"]) for record in caplog.records]
    assert found == [("completed", "t1"), ("completed", "t2"), ("completed", "t3")]


def test_what_the_program_does_to_records_breaks_no_line_off(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = ShieldedLogger("workers.supervisor")
    make = logging.getLogRecordFactory()

    def make_ours(*args: Any, **words: Any) -> logging.LogRecord:
        record = make(*args, **words)
        record.task_id = "the program's"
        return record

    logging.setLogRecordFactory(make_ours)
    try:
        logger.warning("%s failed", "it", extra=EACH[0])
    finally:
        logging.setLogRecordFactory(make)
    for fault in (KeyError("odd"), RuntimeError("broken")):
        monkeypatch.setattr(logger.logger, "filters", [_Raises(fault)])
        logger.warning("nobody hears it", extra=EACH[1])
    monkeypatch.undo()
    logger.info("not wanted")
    logger.warning("wanted")

    found = [(record.name, record.message, getattr(record, "task_id", None)) for record in caplog.records]
    assert found == [("workers.supervisor", "it failed", "t1"), ("workers.supervisor", "wanted", None)]
    assert caplog.records[-1].funcName == "test_what_the_program_does_to_records_breaks_no_line_off"


class _Raises(logging.Filter):
    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self._fault = fault

    def filter(self, record: logging.LogRecord) -> bool:
        raise self._fault
