"""What a worker writes and the supervisor reads, also of a worker that died in the middle of a line."""

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from poqueue.payload import freeze_plain_result, thaw_result
from poqueue.task import Lease, Report, TaskResult
from tests.contract.scene import wait_until
from workers.process_control import born
from workers.recovery import read_left_behind
from workers.worker_files import MAX_LINE_CHARS, OutputLine, Phase, Usage, WorkerReader, WorkerWriter


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[WorkerReader]:
    (tmp_path / "work.1").mkdir()
    reader = WorkerReader(tmp_path / "work.1" / "process-1")
    yield reader
    reader.remove()
    assert not reader.folder.exists()


@pytest.fixture
def writer(reader: WorkerReader) -> Iterator[WorkerWriter]:
    writer = WorkerWriter(reader.folder, reader.mark)
    yield writer
    os.close(writer.output_fd)
    writer.reports.close()
    writer._map.close()


def begin(writer: WorkerWriter, number: str, token: int = 7, attempt: int = 1) -> None:
    writer.begin(Lease(f"id-{number}", token, attempt, 4, 60.0, number, b""), 1.5)


def end(writer: WorkerWriter, number: str, token: int = 7, attempt: int = 1) -> None:
    writer.end(Lease(f"id-{number}", token, attempt, 4, 60.0, number, b""))


def texts(lines: list[OutputLine]) -> list[tuple[str, str, int]]:
    return [(line.po_number, line.text, line.attempt) for line in lines]


def everything(reader: WorkerReader) -> list[OutputLine]:
    """A reader takes only so much at once."""
    return [line for _ in range(50) for line in reader.output()]


def test_the_folder_is_for_this_user_alone(reader: WorkerReader, writer: WorkerWriter) -> None:
    assert reader.folder.stat().st_mode & 0o077 == 0


def test_what_a_worker_used_is_known_only_once_it_has_said_so(reader: WorkerReader, writer: WorkerWriter) -> None:
    assert reader.usage() is None

    writer.used(Usage(1.5, 2.0, 0.25, 50))

    assert reader.usage() == Usage(1.5, 2.0, 0.25, 50)
    assert Usage(1.0, 2.0, 3.0, 7).with_other(Usage(0.5, 0.5, 0.5, 4)) == Usage(1.5, 2.5, 3.5, 7)
    (reader.folder / "usage").write_text("[1.5, 2.0")
    assert reader.usage() is None


def test_a_fresh_worker_is_booting_and_holds_nothing(reader: WorkerReader) -> None:
    status = reader.status()

    assert (status.phase, status.token, status.po_number) == (Phase.BOOTING, 0, "")


def test_the_status_says_what_is_in_hand(reader: WorkerReader, writer: WorkerWriter) -> None:
    writer.phase(Phase.WORKING)
    begin(writer, "PO-1", token=2**63, attempt=3)
    status = reader.status()

    assert status[:5] == (Phase.WORKING, 2**63, 3, 1.5, 60.0)
    assert (status.po_number, status.task_id) == ("PO-1", "id-PO-1")

    writer.idle()

    assert reader.status()[:5] == (Phase.WORKING, 0, 0, 0.0, 0.0)
    assert (reader.status().po_number, reader.status().task_id) == ("", "")
    assert reader.status().has_begun

    begin(writer, "PO-2", token=5)

    assert reader.status()[:2] == (Phase.WORKING, 5) and reader.status().po_number == "PO-2"


@pytest.mark.parametrize("text", [b"", b"a line\n"])
def test_what_is_named_between_two_pos_is_the_sessions(text: bytes, reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    os.write(writer.output_fd, text)
    end(writer, "A")
    writer.idle()
    writer.own(None, "/session")

    assert [one["path"] for one in reader.owned()] == ["/session"]
    assert reader.status().output_start == (reader.folder / "output").stat().st_size


@pytest.mark.parametrize("number", ["x" * 500, "é" * 200, "\ud800", "a\0b", "x" * 159 + "é"])
def test_any_po_number_can_be_in_hand(number: str, reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, number)

    assert reader.status().token == 7
    assert reader.status().po_number[:1] == number.encode(errors="replace").decode()[:1]


def test_lines_go_to_the_po_that_wrote_them(reader: WorkerReader, writer: WorkerWriter) -> None:
    for number in ("A", "B"):
        begin(writer, number)
        os.write(writer.output_fd, f"one {number}\ntwo {number}\n".encode())
        end(writer, number)
    writer.idle()

    assert texts(reader.output()) == [("A", "one A", 1), ("A", "two A", 1), ("B", "one B", 1), ("B", "two B", 1)]
    assert reader.output() == []


def test_a_po_that_says_nothing_leaves_no_mark(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    end(writer, "A")

    assert (reader.folder / "output").stat().st_size == 0


def test_lines_of_a_running_po_are_told_at_once(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    os.write(writer.output_fd, b"one\nhalf")

    assert texts(reader.output()) == [("A", "one", 1)]

    os.write(writer.output_fd, b" and half\n")

    assert texts(reader.output()) == [("A", "half and half", 1)]


def test_lines_of_an_ended_po_are_not_given_to_the_next(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    os.write(writer.output_fd, b"of A\n")
    begun_before_the_mark = reader.output()
    end(writer, "A")
    begin(writer, "B", token=8)
    os.write(writer.output_fd, b"of B\n")

    assert texts(begun_before_the_mark + reader.output()) == [("A", "of A", 1), ("B", "of B", 1)]


def test_lines_between_two_pos_are_the_next_ones(reader: WorkerReader, writer: WorkerWriter) -> None:
    writer.idle()
    os.write(writer.output_fd, b"logging in\n")
    assert reader.output() == []
    begin(writer, "A")

    assert texts(reader.output()) == [("A", "logging in", 1)]


def test_a_worker_that_talks_while_it_is_idle_is_not_held_in_memory(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    os.write(writer.output_fd, b"of A\n" * 5_000)
    end(writer, "A")
    writer.idle()
    os.write(writer.output_fd, b"of nobody\n" * 5_000)

    told = everything(reader)
    begin(writer, "B")
    told += everything(reader)

    assert [line.text for line in told if line.po_number == "A"] == ["of A"] * 5_000
    nobodys = [line for line in told if line.po_number == ""]
    assert len(nobodys) > 3_000
    assert {(line.text, line.task_id, line.attempt) for line in nobodys} == {("of nobody", "", 0)}
    assert len(told) == 10_000 and told[-1].po_number in ("", "B")


def test_the_rest_of_a_dead_worker_is_told(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A", attempt=2)
    os.write(writer.output_fd, b"one\nlast words")

    assert texts(reader.output(is_dead=True)) == [("A", "one", 2), ("A", "last words", 2)]
    assert reader.output(is_dead=True) == []


def test_all_of_a_dead_worker_is_told_however_much_it_is(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    os.write(writer.output_fd, (b"z" * 999 + b"\n") * 10_000 + b"last words")

    assert texts(reader.output(is_dead=True))[-1] == ("A", "last words", 1)


def test_a_line_without_end_is_not_held_in_memory(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    for _ in range(6):
        os.write(writer.output_fd, b"x" * 4_000_000)
        reader.output()

    assert len(reader._rest) < 10_000_000


def test_what_was_read_takes_no_room_on_the_disk(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    count = 0
    for _ in range(20):
        os.write(writer.output_fd, (b"z" * 999 + b"\n") * 1_000)
        count += len(everything(reader))
    end(writer, "A")

    found = (reader.folder / "output").stat()
    assert count == 20_000 and found.st_size > 20_000_000
    assert found.st_blocks * 512 < 4_000_000
    os.write(writer.output_fd, b"later\n")
    begin(writer, "B")
    assert texts(reader.output()) == [("B", "later", 1)]


def test_log_records_keep_level_logger_and_lines(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    os.write(writer.output_fd, b"half a line")
    writer.log(logging.LogRecord("site", logging.WARNING, "f", 1, "m", (), None), "first\nsecond \x1e \ud800")
    os.write(writer.output_fd, b"the rest\n")
    end(writer, "A")

    lines = reader.output()

    assert [(line.text, line.level, line.logger) for line in lines] == [
        ("half a line", "", ""), ("first\nsecond \x1e \ud800", "WARNING", "site"), ("the rest", "", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        '{"token": 1, "attempt": 9, "po_number": "FORGED", "task_id": "x"}', '{"token": 1}',
        '{"token": 1, "attempt": null, "po_number": 1, "task_id": []}', '{"level": "CRITICAL", "logger": "x", "message": "y"}',
        '{"level": [], "logger": {}, "message": null}', "[]", "{", "", "[" * 100_000,
    ],
)  # fmt: skip
def test_text_that_looks_like_a_mark_is_text(line: str, reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    os.write(writer.output_fd, f"\x1e{line}\nafter\n".encode())
    end(writer, "A")

    lines = everything(reader)

    assert {whose.po_number for whose in lines} == {"A"} and {whose.attempt for whose in lines} == {1}
    assert {whose.level for whose in lines} == {""}
    assert lines[-1].text == "after"


@pytest.mark.parametrize("character", ["x", "é", "😀", '"'])
def test_a_log_record_that_is_too_long_for_a_line_says_what_is_left_out(
    character: str, reader: WorkerReader, writer: WorkerWriter
) -> None:
    begin(writer, "A")
    for count in (80_000, 2_000_000):
        writer.log(logging.makeLogRecord({"levelname": "INFO", "name": "site"}), character * count)
    end(writer, "A")
    lines: list[OutputLine] = []
    while reader._has_more():
        lines += reader.output()
    lines += reader.output(is_dead=True)

    whole, cut = (line.text for line in lines)
    assert whole == character * 80_000
    kept = cut.rstrip("]").rpartition(" [")[0]
    assert cut == f"{kept} [{2_000_000 - len(kept):,} characters are left out here]"
    assert kept == character * len(kept) and len(kept) > 80_000
    assert {(line.logger, line.po_number) for line in lines} == {("site", "A")}


def test_long_lines_are_cut_and_any_bytes_are_text(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A")
    os.write(writer.output_fd, b"x" * 50_000 + b"\n\xff\xfe\r\n\0\n")
    end(writer, "A")

    lines = everything(reader)

    assert len(lines[0].text) == MAX_LINE_CHARS
    assert [line.text for line in lines[1:]] == ["\ufffd\ufffd", "\0"]


def test_reports_come_back_whole(reader: WorkerReader, writer: WorkerWriter) -> None:
    result = freeze_plain_result(TaskResult(True, ["a.pdf"], 0.5, None, {"é": [1, None, 2.5]}))
    reports = [
        Report("A", 1, 0.5, result),
        Report("B", 2, 0.1, None, {"error_type": "X", "message": "é \u2028 \x85"}, 3.0, False),
        Report("C", 3, 0.1, freeze_plain_result(TaskResult(False, error_message="no\u2029 such order"))),
        Report("D", 4, 0.1, None, {"error_type": "GiveUp"}, None, True),
    ]
    for report in reports:
        writer.reports.keep(report)

    assert reader.untold_reports() == reports
    assert thaw_result(reader.untold_reports()[0].result.payload).data == {"é": [1, None, 2.5]}

    writer.reports.told()

    assert reader.untold_reports() == []


def test_reports_on_their_way_stay_until_they_are_told_and_later_ones_beyond(
    reader: WorkerReader, writer: WorkerWriter
) -> None:
    def untold() -> list[str]:
        return [report.task_id for report in reader.untold_reports()]

    for number, task_id in enumerate("ABCD"):
        writer.reports.keep(Report(task_id, number, 0.5, freeze_plain_result(TaskResult(True))))
        if task_id == "B":
            writer.reports.telling()
    assert untold() == ["A", "B", "C", "D"]

    writer.reports.told(all_of_them=False)
    assert untold() == ["C", "D"]

    writer.reports.telling()
    writer.reports.keep(Report("E", 5, 0.5, freeze_plain_result(TaskResult(True))))
    assert untold() == ["C", "D", "E"]

    writer.reports.told()
    assert untold() == []


def test_a_report_that_its_worker_died_over_is_left_out(reader: WorkerReader, writer: WorkerWriter) -> None:
    writer.reports.keep(Report("A", 1, 0.5, freeze_plain_result(TaskResult(True))))
    with open(reader.folder / "reports", "ab") as file:
        file.write(b'["B", 2, 0.5, [true, 0.5, nu')

    assert [report.task_id for report in reader.untold_reports()] == ["A"]


@pytest.mark.parametrize(
    "junk", [b"[]", b"7", b"null", b'["A"]', b'["A", 1, 0.5, [1]]', b"\xff\xff", b'["A", 1, 0.5, 7, null]']
)
def test_junk_among_the_reports_is_left_out(junk: bytes, reader: WorkerReader, writer: WorkerWriter) -> None:
    with open(reader.folder / "reports", "ab") as file:
        file.write(junk + b"\n")
    writer.reports.keep(Report("A", 1, 0.5, freeze_plain_result(TaskResult(True))))

    assert [report.task_id for report in reader.untold_reports()] == ["A"]


def test_what_is_owned_is_read_line_by_line(reader: WorkerReader, writer: WorkerWriter, tmp_path: Path) -> None:
    writer.own(os.getpid(), None)
    writer.own(None, os.path.relpath(tmp_path / "x"))
    with open(reader.folder / "owned", "a") as file:
        file.write('{"pid": 13, "pa')

    assert reader.owned() == [
        {"pid": os.getpid(), "born": born(os.getpid()), "path": None},
        {"pid": None, "born": None, "path": str(tmp_path / "x")},
    ]


def test_what_an_attempt_named_is_owned_until_its_report_is_kept(reader: WorkerReader, writer: WorkerWriter) -> None:
    def paths() -> list[str]:
        return [item["path"] for item in reader.owned()]

    writer.own(None, "/profile")
    begin(writer, "A", token=1)
    writer.own(None, "/half")
    begin(writer, "B", token=2)
    writer.own(None, "/other-half")
    in_hand = paths()
    writer.reports.keep(Report("id-B", 2, 0.5, freeze_plain_result(TaskResult(True))))
    kept = paths()
    writer.idle()

    assert in_hand == ["/profile", "/other-half"]
    assert kept == ["/profile"] == paths()


def test_what_an_older_version_names_is_all_owned(reader: WorkerReader, writer: WorkerWriter) -> None:
    begin(writer, "A", token=1)
    (reader.folder / "owned").write_text('{"pid": null, "born": null, "path": "/x"}\n')

    assert reader.owned() == [{"pid": None, "born": None, "path": "/x"}]


def test_a_boot_failure_is_cut_and_read(reader: WorkerReader, writer: WorkerWriter) -> None:
    assert reader.boot_failure() == ""

    writer.boot_failed("no display \ud800" + "x" * 100_000)

    assert reader.boot_failure().startswith("no display")
    assert len(reader.boot_failure()) < 10_000


def test_a_reader_whose_folder_is_gone_reads_nothing(reader: WorkerReader, writer: WorkerWriter) -> None:
    import shutil

    shutil.rmtree(reader.folder)

    assert (reader.stack(), reader.boot_failure(), reader.owned(), reader.untold_reports()) == ("", "", [], [])
    assert reader.output(is_dead=True) == []
    assert json.dumps(reader.status()._asdict())


@pytest.fixture
def owned(reader: WorkerReader) -> Iterator["subprocess.Popen[bytes]"]:
    begun = time.time()
    wait_until(lambda: time.time() > begun + 0.1, "it is younger than the worker's files")
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


def test_what_a_dead_worker_owned_is_ended_however_long_it_had_worked(
    owned: "subprocess.Popen[bytes]", reader: WorkerReader, writer: WorkerWriter, tmp_path: Path
) -> None:
    """The kernel notes again and again that the mapped status was written."""
    writer.own(owned.pid, None)
    begun = time.time()
    wait_until(lambda: time.time() > begun + 1.5, "more than any tolerance has gone by")
    os.utime(reader.folder / "status")

    read_left_behind(tmp_path)

    wait_until(lambda: owned.poll() is not None, "it is ended")
    assert owned.returncode == -signal.SIGKILL


def test_under_which_ids_dead_workers_have_worked_is_known(tmp_path: Path) -> None:
    """Also of one that has never had a lease: whoever resumes gives no id twice."""
    (tmp_path / "work.1").mkdir()
    for number, worker_id in enumerate(("w1.7", "w2.1")):
        reader = WorkerReader(tmp_path / "work.1" / f"process-{number}")
        reader.name(worker_id)
        reader.let_go()

    assert read_left_behind(tmp_path).worker_ids == ["w1.7", "w2.1"]
