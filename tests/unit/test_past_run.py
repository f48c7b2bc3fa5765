"""What `poqueue tune RUN` learns from: a run's journal, whatever became of the run, or the report of one without."""

import json
from pathlib import Path
from typing import Any

import pytest

from poqueue import ProcessingTask, TaskQueue, TaskResult
from poqueue.adaptive import TIMEOUT_ERROR
from poqueue.errors import ConfigError, JournalError
from poqueue.records import Kind
from tests.unit.sample_journal import JournalMaker
from workers.cli import main
from workers.measurement import measured_from_history
from workers.past_run import attempts_of_report, read_past_run
from workers.run_record import RunRecord

BEGUN = "2026-05-28T20:26:40+00:00"
SETTINGS = {"jobs": 2, "max_retries": 1, "task_timeout": "60s", "journal": True, "processor": "site:Session"}


def a_run(folder: Path, **more: Any) -> Path:
    RunRecord("/o/orders.csv", "00", "orders.csv", "site:Session", {}, {**SETTINGS, **more}, BEGUN).write(folder)
    return folder


def a_report(folder: Path, tasks: Any = (), **run: Any) -> None:
    settings = {key: {"value": value, "from": "default"} for key, value in SETTINGS.items()}
    told = {"began_run": BEGUN, "reason": "done", "seconds": 9.0, "settings": settings, **run}
    (folder / "report.json").write_text(json.dumps({"run": told, "accounts": {}, "tasks": list(tasks)}), "utf-8")


def a_journal(folder: Path) -> None:
    """A ends well at once, B after a hang, C never; D is cancelled, and E's first attempt ended with its worker's run."""
    with JournalMaker(folder / "journal.sqlite") as journal:
        a, b, c, d, e = (journal.add(name, priority=n) for n, name in enumerate("ABCDE", 1))
        journal.end(Kind.COMPLETED, journal.lease(a, "w1.1", 1.0), 2.5, seconds=1.5)
        hang = journal.lease(b, "w2.1", 1.0)
        journal.end(Kind.RETRY, hang, 61.2, error_type=TIMEOUT_ERROR, message="too long", seconds=60.2)
        journal.end(Kind.COMPLETED, journal.lease(b, "w2.2", 66.5), 68.5, seconds=2.0)
        journal.end(Kind.RETRY, journal.lease(c, "w1.1", 3.0), 3.5, seconds=0.5, error_type="ValueError")
        journal.end(Kind.FAILED, journal.lease(c, "w1.1", 9.0), 9.25, seconds=0.25, error_type="ValueError")
        journal.end(Kind.FAILED, journal.lease(d, "w1.1", 10.0), 11.0, seconds=1.0, error_type="Cancelled")
        journal.end(Kind.INTERRUPTED, journal.lease(e, "w1.1", 12.0), 13.0, error_type="Interrupted")
        journal.end(Kind.COMPLETED, journal.lease(e, "w1.1", 14.0), 14.75, seconds=0.75)


TOLD = {
    ("A", 1.5, "completed", ""),
    ("B", 60.2, "retry", TIMEOUT_ERROR),
    ("B", 2.0, "completed", ""),
    ("C", 0.5, "retry", "ValueError"),
    ("C", 0.25, "failed", "ValueError"),
    ("E", 0.75, "completed", ""),
}


def test_every_attempt_is_read_from_the_journal_and_what_tells_nothing_is_left_out(tmp_path: Path) -> None:
    a_journal(a_run(tmp_path))

    past = read_past_run(tmp_path)

    assert {(one.po_number, one.seconds, one.outcome, one.error_type) for one in past.attempts} == TOLD
    assert not any(one.is_final for one in past.attempts)
    assert past.priorities == [1, 2, 3, 4, 5]
    assert (past.jobs, past.source) == (2, f"5 POs of the run {tmp_path}")


def test_the_journal_counts_and_not_what_a_report_beside_it_says(tmp_path: Path) -> None:
    a_journal(a_run(tmp_path))
    a_report(tmp_path)

    past = read_past_run(tmp_path)

    assert len(past.attempts) == len(TOLD)
    assert (past.seconds, past.note) == (9.0, "")


def test_what_the_workers_used_tells_whether_the_work_computes(tmp_path: Path) -> None:
    a_journal(a_run(tmp_path))
    a_report(tmp_path, workers_used={"cpu_s": 4.0, "busy_s": 5.0, "queued_s": 0.0, "max_rss_bytes": 50_000_000})

    measurement = measured_from_history(read_past_run(tmp_path).attempts)

    assert measurement.cpu_share == pytest.approx(0.8) and measurement.kind == "computes"
    assert measurement.rss_bytes == 50_000_000
    assert measurement.seconds == pytest.approx([0.75, 1.5, 2.0])


def test_time_that_attempts_stood_in_line_for_a_core_is_not_their_own(tmp_path: Path) -> None:
    """Eight workers on two cores: each attempt took four times as long as alone."""
    a_journal(a_run(tmp_path))
    a_report(tmp_path, workers_used={"cpu_s": 1.25, "busy_s": 5.0, "queued_s": 3.75, "max_rss_bytes": 1})

    measurement = measured_from_history(read_past_run(tmp_path).attempts)

    assert [
        attempt.seconds for history in measurement.histories for attempt in history if attempt.outcome == "completed"
    ] == (pytest.approx([1.5 / 4, 2.0 / 4, 0.75 / 4]))
    assert measurement.seconds == pytest.approx([0.75, 1.5, 2.0])  # which is what a timeout goes by
    assert measurement.cpu_share == pytest.approx(1.0)
    assert measurement.hung == {"B": 60.2}


@pytest.mark.parametrize(
    "used", [None, 5, {}, {"cpu_s": 1.0}, {"cpu_s": 0.0, "busy_s": 0.0, "queued_s": 0.0, "max_rss_bytes": 0}]
)
def test_where_usage_is_not_told_nothing_is_made_up(used: Any, tmp_path: Path) -> None:
    a_journal(a_run(tmp_path))
    a_report(tmp_path, workers_used=used)

    assert measured_from_history(read_past_run(tmp_path).attempts).cpu_share is None


def test_a_run_that_has_not_come_to_its_end_is_learned_from_as_far_as_it_got(tmp_path: Path) -> None:
    with JournalMaker(a_run(tmp_path) / "journal.sqlite") as journal:
        journal.end(Kind.COMPLETED, journal.lease(journal.add("A"), "w1.1", 1.0), 2.5, seconds=1.5)
        journal.lease(journal.add("B"), "w1.1", 2.5)
        journal.add("C")

    past = read_past_run(tmp_path)

    assert [one.po_number for one in past.attempts] == ["A"]
    assert len(past.priorities) == 3
    assert past.seconds is None
    assert "did not come to its end" in past.note and "1 of 3 POs" in past.note and "1 attempts" in past.note


def test_of_a_run_that_has_not_ended_the_failed_attempts_of_what_waits_are_told_apart(tmp_path: Path) -> None:
    with JournalMaker(a_run(tmp_path) / "journal.sqlite") as journal:
        journal.end(Kind.COMPLETED, journal.lease(journal.add("A"), "w1.1", 1.0), 2.5, seconds=1.5)
        journal.end(Kind.RETRY, journal.lease(journal.add("B"), "w1.1", 3.0), 3.5, seconds=0.5, error_type="ValueError")

    past = read_past_run(tmp_path)

    assert [(one.po_number, one.outcome) for one in past.attempts] == [("A", "completed"), ("B", "retry")]
    assert "the 1 of 2 POs that have ended, and from failed attempts at 1 that has not" in past.note


@pytest.mark.parametrize("reason", ["interrupted", "halted"])
def test_of_a_run_that_ended_early_it_is_said_how_far_it_came(reason: str, tmp_path: Path) -> None:
    with JournalMaker(a_run(tmp_path) / "journal.sqlite") as journal:
        journal.end(Kind.COMPLETED, journal.lease(journal.add("A"), "w1.1", 1.0), 2.5, seconds=1.5)
        journal.add("B")
    a_report(tmp_path, reason=reason)

    assert read_past_run(tmp_path).note == "the run ended early: learned from the 1 of 2 POs that have ended"


@pytest.mark.parametrize("reason", ["interrupted", "halted"])
def test_a_run_whose_pos_have_all_ended_did_not_end_early(reason: str, tmp_path: Path) -> None:
    with JournalMaker(a_run(tmp_path) / "journal.sqlite") as journal:
        journal.end(Kind.COMPLETED, journal.lease(journal.add("A"), "w1.1", 1.0), 2.5, seconds=1.5)
        journal.end(Kind.FAILED, journal.lease(journal.add("B"), "w1.1", 3.0), 3.5, seconds=0.5, error_type="GiveUp")
    a_report(tmp_path, reason=reason)

    assert read_past_run(tmp_path).note == ""


@pytest.mark.parametrize("cause", ["resumed", "halted", "scaled up", "paused"])
def test_its_time_counts_only_if_it_was_one_stretch_of_work(tmp_path: Path, cause: str) -> None:
    with JournalMaker(a_run(tmp_path) / "journal.sqlite") as journal:
        for number in range(3):
            lease = journal.lease(journal.add(str(number)), f"w{number + 1}.1", 1.0)
            journal.end(Kind.COMPLETED, lease, 2.5, seconds=1.5)
        if cause == "paused":
            journal.note(Kind.PAUSED, 3.0)
            journal.note(Kind.RESUMED, 4.0)
    more: dict[str, Any] = {"resumed": {"resumed": {}}, "halted": {"reason": "halted"}}.get(cause, {})
    jobs = {"jobs": {"value": 2 if cause == "scaled up" else 3, "from": "default"}}
    limits = {"max_retries": {"value": 1, "from": "default"}}
    a_report(tmp_path, settings={**jobs, **limits}, **more)

    assert read_past_run(tmp_path).seconds is None


def test_what_lay_between_attempts_and_around_them_is_told_apart(tmp_path: Path) -> None:
    with JournalMaker(a_run(tmp_path) / "journal.sqlite") as journal:
        for number in range(20):
            worker, start = f"w{number % 2 + 1}.1", 2.0 + number // 2 * 1.01
            lease = journal.lease(journal.add(str(number)), worker, start)
            journal.end(Kind.COMPLETED, lease, start + 1.0, seconds=1.0)
        retried = journal.lease(journal.add("late"), "w1.1", 12.1)
        journal.end(Kind.RETRY, retried, 12.2, seconds=0.1, error_type="ValueError")
        journal.end(Kind.COMPLETED, journal.lease(21, "w1.1", 17.2), 17.3, seconds=0.1)
    a_report(tmp_path, seconds=20.0)

    past = read_past_run(tmp_path)

    assert past.gap_s == pytest.approx(0.01, abs=1e-3)  # and not the wait for the retry
    assert past.outside_s == pytest.approx(20.0 - 15.3, abs=1e-3)


def test_how_long_workers_that_replace_others_took_is_told_by_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with JournalMaker(a_run(tmp_path, jobs=1, max_tasks_per_worker=1) / "journal.sqlite") as journal:
        for number in range(20):
            lease = journal.lease(journal.add(str(number)), f"w1.{number + 1}", 1.0 + number * 1.5)
            journal.end(Kind.COMPLETED, lease, 2.0 + number * 1.5, seconds=1.0)
    told = {"jobs": 1, "max_retries": 1, "max_tasks_per_worker": 1}
    a_report(tmp_path, seconds=31.0, settings={key: {"value": one, "from": "x"} for key, one in told.items()})

    main(["tune", str(tmp_path), "--json"])

    assert read_past_run(tmp_path).replaced_s == pytest.approx(0.5, abs=1e-3)
    assert json.loads(capsys.readouterr().out)["predicted"]["now"]["seconds"] == pytest.approx(31.0, rel=0.03)


def a_run_in_a_row(folder: Path, pos: int, *, is_replaced: bool = False, **more: Any) -> None:
    """POs of 1 s each with 10 ms between them, and 0.5 s before and behind; each by a worker of its own, if it is replaced."""
    with JournalMaker(a_run(folder, jobs=1, **more) / "journal.sqlite") as journal:
        for number in range(pos):
            lease = journal.lease(journal.add(str(number)), f"w1.{number + 1 if is_replaced else 1}", number * 1.01)
            journal.end(Kind.COMPLETED, lease, number * 1.01 + 1.0, seconds=1.0)
    told = {"jobs": 1, "max_retries": 1, **more}
    a_report(folder, seconds=pos * 1.01 + 1.0, settings={key: {"value": one, "from": "x"} for key, one in told.items()})


@pytest.mark.parametrize("asked", [["--delay", "30s"], ["--max-tasks-per-worker", "1"], ["--timeout", "500ms"]])
def test_what_is_fitted_is_the_run_as_it_was_set_then(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run_in_a_row(tmp_path, 20)

    def fit(*words: str) -> str:
        main(["tune", str(tmp_path), *words, "--json"])
        note: str = json.loads(capsys.readouterr().out)["note"]
        return note

    assert "the run took 21.2 s; the simulation takes 21." in fit()
    assert fit(*asked) == fit()


@pytest.mark.parametrize(
    ("pos", "is_replaced", "fitted"),
    [
        (3, False, "its start and end"),
        (20, False, "its start and end, the time between two attempts"),
        (3, True, "its start and end"),
        (20, True, "its start and end, the replacement of workers"),
    ],
)
def test_it_is_said_what_was_fitted(
    pos: int, is_replaced: bool, fitted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run_in_a_row(tmp_path, pos, is_replaced=is_replaced, **({"max_tasks_per_worker": 1} if is_replaced else {}))

    main(["tune", str(tmp_path), "--json"])

    assert json.loads(capsys.readouterr().out)["note"].endswith(f"; fitted to the run: {fitted}")


@pytest.mark.parametrize("other", [[1], []], ids=["after its first PO", "before it had one"])
def test_a_run_that_was_scaled_down_is_not_as_set(other: list[int], tmp_path: Path) -> None:
    with JournalMaker(a_run(tmp_path) / "journal.sqlite") as journal:
        for number in range(10):
            worker, start = ("w1.1", number * 1.0) if number not in other else ("w2.1", 0.0)
            lease = journal.lease(journal.add(str(number)), worker, start)
            journal.end(Kind.COMPLETED, lease, start + 1.0, seconds=1.0)
    a_report(tmp_path, seconds=10.5)

    assert read_past_run(tmp_path).seconds is None


def test_what_a_run_of_few_pos_took_to_start_is_no_cost_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with JournalMaker(a_run(tmp_path, jobs=64) / "journal.sqlite") as journal:
        for number in range(16):
            lease = journal.lease(journal.add(str(number)), f"w{number}.1", 4.0)
            journal.end(Kind.COMPLETED, lease, 5.0, seconds=1.0)
    jobs = {"jobs": {"value": 64, "from": "default"}, "max_retries": {"value": 1, "from": "default"}}
    used = {"cpu_s": 0.016, "busy_s": 16.0, "queued_s": 0.0, "max_rss_bytes": 50_000_000}
    a_report(tmp_path, seconds=6.0, workers_used=used, settings=jobs)

    main(["tune", str(tmp_path), "--json", "--what-if", "jobs=4,16,64"])

    found = json.loads(capsys.readouterr().out)
    four, sixteen, more = found["what_if"]
    assert four["seconds"] == pytest.approx(9.0, rel=0.1)
    assert sixteen["seconds"] == pytest.approx(more["seconds"]) == pytest.approx(6.0, rel=0.2)
    assert more["memory_bytes"] == sixteen["memory_bytes"] == 16 * 50_000_000
    assert found["predicted"]["now"]["seconds"] == pytest.approx(more["seconds"], rel=0.01)


def test_giving_up_before_the_last_retry_is_for_good(tmp_path: Path) -> None:
    with JournalMaker(a_run(tmp_path) / "journal.sqlite") as journal:
        journal.end(Kind.FAILED, journal.lease(journal.add("A"), "w1.1", 1.0), 2.0, seconds=1.0, error_type="GiveUp")

    assert [one.is_final for one in read_past_run(tmp_path).attempts] == [True]


def test_what_was_set_is_kept_and_what_stands_by_itself_is_not(tmp_path: Path) -> None:
    a_journal(a_run(tmp_path, task_timeout="5m"))

    settings = read_past_run(tmp_path).settings

    assert "task_timeout" not in settings and "journal" not in settings
    assert (settings["processor"], settings["max_retries"]) == ("site:Session", 1)


def test_pos_that_share_a_number_are_counted(tmp_path: Path) -> None:
    with JournalMaker(a_run(tmp_path, duplicates="separate") / "journal.sqlite") as journal:
        for name in "AABCCC":
            journal.end(Kind.COMPLETED, journal.lease(journal.add(name), "w1.1", 1.0), 2.5, seconds=1.5)

    assert read_past_run(tmp_path).repeated == 3


def test_a_run_without_a_journal_is_learned_from_by_its_report_and_that_is_said(tmp_path: Path) -> None:
    queue = TaskQueue(max_retries=1)
    queue.add_task(ProcessingTask("A", {"po_number": "A"}))
    queue.get_next_task("w")
    queue.complete_task("A", "w", TaskResult(True, [], 1.5))
    report = queue.export_queue_report("json")
    assert isinstance(report, dict)
    a_report(a_run(tmp_path, journal=False), report["tasks"])

    past = read_past_run(tmp_path)

    assert [(one.po_number, one.seconds, one.outcome) for one in past.attempts] == [("A", 1.5, "completed")]
    assert "no journal" in past.note and "report.json" in past.note
    assert past.seconds is None


def test_a_journal_that_is_lost_is_told_and_not_made_up_for(tmp_path: Path) -> None:
    a_report(a_run(tmp_path))

    with pytest.raises(JournalError, match=str(tmp_path)):
        read_past_run(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"run": {}, "accounts": {}, "tasks": []}'])
def test_without_journal_and_report_there_is_nothing_to_learn_from(tmp_path: Path, content: str | None) -> None:
    a_run(tmp_path, journal=False)
    if content is not None:
        (tmp_path / "report.json").write_text(content, encoding="utf-8")

    with pytest.raises(ConfigError, match=r"nothing to learn from.*report\.json"):
        read_past_run(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        read_past_run(tmp_path)


# ── a report's tasks ─────────────────────────────────────────────────────────────────────────────────────────────────


def tasks_of(queue: TaskQueue) -> list[dict[str, Any]]:
    report = queue.export_queue_report("json")
    assert isinstance(report, dict)
    tasks: list[dict[str, Any]] = report["tasks"]
    return tasks


def test_the_attempts_of_a_run_are_read_from_its_report() -> None:
    queue = TaskQueue(max_retries=1, retry_delay=0.0)
    for number in ("good", "late", "bad", "hopeless"):
        queue.add_task(ProcessingTask(po_data={"po_number": number}))
    while (task := queue.get_next_task("w")) is not None:
        if task.po_number == "hopeless":
            queue.complete_task(task.task_id, "w", TaskResult(False, [], 0.5, "gone"))
        elif task.po_number == "bad" or (task.po_number == "late" and task.attempt == 1):
            queue.retry_task(task.task_id, {"error_type": "ValueError", "error": "no", "seconds": 2.0})
        else:
            queue.complete_task(task.task_id, "w", TaskResult(True, [], 1.5))

    found = {(one.po_number, one.outcome, one.error_type, one.is_final) for one in attempts_of_report(tasks_of(queue))}

    assert found == {
        ("good", "completed", "", False),
        ("late", "retry", "ValueError", False),
        ("late", "completed", "", False),
        ("bad", "retry", "ValueError", False),
        ("bad", "failed", "ValueError", False),
        ("hopeless", "failed", "gone", True),
    }


def test_an_attempt_that_ended_with_its_run_tells_nothing() -> None:
    queue = TaskQueue(max_retries=1)
    queue.add_task(ProcessingTask("A", {"po_number": "A"}))
    queue.get_next_task("w1")
    queue.interrupt_leases(list(queue.get_leases()), "killed", is_crash=True)
    queue.get_next_task("w2")
    queue.complete_task("A", "w2", TaskResult(True, [], 1.5))
    tasks = tasks_of(queue)
    assert tasks[0]["interruptions"] == 1

    assert [(one.outcome, one.seconds) for one in attempts_of_report(tasks)] == [("completed", 1.5)]
