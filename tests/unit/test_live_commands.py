"""What `poqueue status` says of a queue and of what its supervisor left to be seen."""

from pathlib import Path
from typing import Any, NoReturn

import pytest

from poqueue.errors import ManagerLostError, PoqueueError, QueueError
from workers import run_control
from workers.cli import main
from workers.live_commands import _fitted, _look, _status_text
from workers.run_control import order, read_order
from workers.run_record import RunRecord

STATUS: dict[str, Any] = {
    "run": "r", "total_tasks": 270, "cleared_tasks": 0, "completed_tasks": 20, "failed_tasks": 1, "processing_tasks": 2,
    "retry_tasks": 0, "pending_tasks": 247, "throughput": 10.0, "estimated_completion": 25.0, "reason": "",
}  # fmt: skip
VIEW: dict[str, Any] = {"workers": (), "elapsed_s": 2.0, "jobs": 2, "phase": "running", "note": ""}


def test_what_is_still_to_be_added_counts_and_no_time_is_guessed_without_it() -> None:
    told = _status_text({**STATUS, "view": {**VIEW, "to_add": 1000}})

    assert "21 of 1270 POs" in told and "1247 waiting" in told
    assert "not known yet" in told


def test_once_all_is_added_the_queue_says_how_long_it_takes() -> None:
    told = _status_text({**STATUS, "view": {**VIEW, "to_add": 0}})

    assert "21 of 270 POs" in told and "247 waiting" in told
    assert "25s to go" in told


def test_the_pace_is_told_without_an_exponent() -> None:
    assert "\n17,300 POs/s, " in _status_text({**STATUS, "throughput": 17_300.0, "view": VIEW})


@pytest.mark.parametrize(("word", "value"), [("drain", None), ("stop", None), ("scale", 1), ("scale", 256)])
def test_an_order_arrives_as_it_was_given(word: str, value: Any) -> None:
    assert read_order(order(word, value)) == (word, value)


@pytest.mark.parametrize(
    ("word", "value"),
    [*(("scale", value) for value in (0, -3, 257, True, 2.0, "2", None)), ("cancel", "4711"), ("", None), ("go", None)],
)
def test_what_nobody_could_obey_is_no_order(word: str, value: Any) -> None:
    assert read_order(order(word, value)) == ("", None)


def test_no_attempt_is_shown_to_have_begun_in_the_future() -> None:
    worker = {
        "worker_id": "w1.1", "state": "running", "po_number": "A", "attempt": 1, "elapsed_s": -0.03, "timeout_s": 300.0,
        "rss_bytes": 0,
    }  # fmt: skip

    assert " 0.0 of 300 s" in _status_text({**STATUS, "view": {**VIEW, "workers": (worker,)}})


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (80, 12), (80, 5), (30, 8)])
def test_on_a_short_terminal_the_counts_stay_and_workers_are_cut(columns: int, rows: int) -> None:
    worker = {"state": "running", "po_number": "A", "attempt": 1, "elapsed_s": 0.0, "timeout_s": 300.0, "rss_bytes": 0}
    workers = tuple({**worker, "worker_id": f"w{number}.1"} for number in range(10))
    told = _status_text({**STATUS, "view": {**VIEW, "workers": workers}})

    shown = _fitted(told, columns, rows).split("\n")

    assert shown[:2] == told.split("\n")[:2] and "21 of 270 POs" in shown[1]
    assert sum(len(line) // columns + 1 for line in shown) < rows
    assert (shown[-1] == "…") == (rows < 24)


class Queue:
    """A queue that has taken POs since its supervisor showed how many it was still to be given."""

    def get_queue_status(self) -> dict[str, Any]:
        return STATUS

    def get_view(self) -> dict[str, Any]:
        return {**VIEW, "to_add": 300}


def test_there_are_never_more_pos_than_the_order_file_holds(tmp_path: Path) -> None:
    RunRecord("/o.csv", "00", "orders.csv", "m:f", {}, {}, "", counted={"pos": 400}).write(tmp_path)

    status = _look(tmp_path, Queue())  # type: ignore[arg-type]

    assert status["view"]["to_add"] == 130
    assert "21 of 400 POs" in _status_text(status) and "377 waiting" in _status_text(status)


class EndingQueue:
    """The queue of a run that is over as soon as anything is asked of it."""

    def __init__(self, lock: run_control.RunLock, error: PoqueueError) -> None:
        self._lock, self._error = lock, error

    def __getattr__(self, name: str) -> Any:
        def end(*args: Any, **words: Any) -> NoReturn:
            self._lock.release()
            raise self._error

        return end


@pytest.mark.parametrize(
    "words",
    [["scale", "3", "--json", "no run"], ["cancel", "A", "--json", "no run"], ["cancel", "--json", "A", "no run"]],
)
def test_an_option_may_stand_before_any_word(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "there is no run 'no run'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["scale", "3", "--json", "r", "s"], ["scale", "3", "r", "--quick"]])
def test_a_word_too_many_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)

    assert "unrecognized arguments: " in capsys.readouterr().err


@pytest.mark.parametrize("error", [ManagerLostError("gone"), QueueError("Cannot operate on a closed database")])
@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["cancel", "A"], ["pause"], ["drain"]])
def test_a_run_that_ends_while_it_is_asked_is_not_running(
    words: list[str],
    error: PoqueueError,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lock = held_lock(tmp_path)
    monkeypatch.setattr(run_control, "connect", lambda address, key: EndingQueue(lock, error))

    code = main([*words, str(tmp_path)])

    assert (code, capsys.readouterr().err) == (2, f"poqueue: {tmp_path} is not running\n")


def test_a_run_that_ends_before_it_is_reached_is_not_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = held_lock(tmp_path)

    def find_nobody(address: str, key: bytes) -> NoReturn:
        lock.release()
        raise ManagerLostError("connect: the manager process is gone (FileNotFoundError)")

    monkeypatch.setattr(run_control, "connect", find_nobody)

    assert main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"poqueue: {tmp_path} is not running\n"


def test_a_run_that_has_no_manager_for_long_is_told_to_get_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = held_lock(tmp_path)
    monkeypatch.setattr(run_control, "REPLACED_WITHIN_S", 0.2)

    code = main(["pause", str(tmp_path)])

    lock.release()
    assert code == 2
    assert capsys.readouterr().err == f"poqueue: {tmp_path}: its manager is being replaced; try again in a while\n"


class LosingQueue:
    """The queue of a manager that is killed once it has been asked something, and of the one after it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def answer(*args: Any, **words: Any) -> None:
            self.asked.append(name)
            if len(self.asked) == 1:
                raise ManagerLostError("gone")

        return answer


@pytest.mark.parametrize(("word", "code", "times"), [("pause", 0, 2), ("drain", 0, 2), ("stop", 2, 1)])
def test_what_a_lost_manager_was_asked_the_next_one_is_asked_but_not_to_stop_twice(
    word: str,
    code: int,
    times: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lock, queue = held_lock(tmp_path), LosingQueue()
    monkeypatch.setattr(run_control, "connect", lambda address, key: queue)
    monkeypatch.setattr(run_control, "ENDS_WITHIN_S", 0.0)

    ended = main([word, str(tmp_path)])

    lock.release()
    assert (ended, len(queue.asked)) == (code, times)
    assert ("may not have heard this" in capsys.readouterr().err) == (word == "stop")


def test_a_live_run_that_has_no_queue_is_starting_or_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = run_control.RunLock(tmp_path)
    lock.acquire()

    code = main(["status", str(tmp_path)])

    lock.release()
    assert code == 2
    assert capsys.readouterr().err.startswith(f"poqueue: {tmp_path} is starting or ending: it reads its orders, or ")


def held_lock(run_dir: Path) -> run_control.RunLock:
    """That of a run, which seems to be live."""
    control = run_control.ControlFile("/tmp/x/socket", "00" * 32, "r", 1, 1, 0.0)
    control.write(run_dir)
    lock = run_control.RunLock(run_dir)
    lock.acquire()
    return lock
