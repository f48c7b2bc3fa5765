"""Reports outlive their worker, wherever it dies and whatever their size, and a reader never sees a mixture of two."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poqueue.payload import freeze_plain_result
from poqueue.task import Report, TaskResult
from workers import kept_reports
from workers.kept_reports import HALF_BYTES, KEPT_BYTES, KEPT_FILE, REPORT_FILES, ReportKeeper, read_kept


def make_files(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / KEPT_FILE).write_bytes(bytes(KEPT_BYTES))
    for name in REPORT_FILES:
        (folder / name).write_bytes(b"")


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[ReportKeeper]:
    make_files(tmp_path)
    keeper = ReportKeeper(tmp_path)
    yield keeper
    keeper.close()


def report(token: int, size: int = 10, task_id: str = "") -> Report:
    result = freeze_plain_result(
        TaskResult(token % 7 != 0, [], 0.5, None if token % 7 else "no", {"x": f"{token}," * size})
    )
    return Report(task_id or f"t{token}", token, token / 8, result)


def failed(token: int) -> Report:
    return Report(f"t{token}", token, 0.1, None, {"error_type": "X", "message": "\u2028"}, 3.0, give_up=True)


def test_a_small_result_is_kept_without_a_file_and_a_large_one_in_a_file(keeper: ReportKeeper, tmp_path: Path) -> None:
    assert keeper.keep(report(1))
    assert [(tmp_path / name).stat().st_size for name in REPORT_FILES] == [0, 0]

    assert keeper.keep(report(2, size=HALF_BYTES))
    assert (tmp_path / REPORT_FILES[0]).stat().st_size > HALF_BYTES

    assert read_kept(tmp_path) == [report(1), report(2, size=HALF_BYTES)]


@pytest.mark.parametrize("task_id", ["\ud800", "é\0\t\n", "x" * 5000])
def test_any_task_id_comes_back(task_id: str, keeper: ReportKeeper, tmp_path: Path) -> None:
    keeper.keep(report(3, task_id=task_id))

    assert read_kept(tmp_path) == [report(3, task_id=task_id)]


def test_a_half_is_filled_to_its_last_byte_and_not_beyond(keeper: ReportKeeper, tmp_path: Path) -> None:
    keeper.telling()
    keeper.keep(report(900))  # in the second half
    keeper.told(all_of_them=False)
    keeper.telling()  # and the first one is filled now
    tokens = range(1, 1200)
    for token in tokens:
        assert keeper.keep(report(token))

    assert (tmp_path / REPORT_FILES[0]).stat().st_size > 0, "this test must fill the half"
    assert [one.token for one in read_kept(tmp_path)] == sorted([900, *tokens])


steps = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), st.sampled_from([0, 1, 100, 3000, 15_000, 40_000])),
        st.tuples(st.sampled_from(["fail", "tell", "told", "all told"]), st.just(0)),
    ),
    max_size=60,
)


@pytest.mark.once
@settings(max_examples=150)
@given(steps=steps)
def test_what_is_kept_is_what_was_not_told(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    make_files(folder)
    keeper = ReportKeeper(folder)
    under_way: list[Report] = []
    later: list[Report] = []
    is_under_way = False
    for token, (step, size) in enumerate(steps, 1):
        if step in ("keep", "fail"):
            later.append(report(token, size) if step == "keep" else failed(token))
            assert keeper.keep(later[-1])
        elif step == "tell" and not is_under_way:
            keeper.telling()
            under_way, later, is_under_way = later, [], True
        elif step == "told" and is_under_way:
            keeper.told(all_of_them=False)
            under_way, is_under_way = [], False
        elif step == "all told":
            keeper.told()
            under_way, later, is_under_way = [], [], False
        assert read_kept(folder) == under_way + later
    keeper.close()


def test_reports_whose_telling_failed_stay_when_others_are_on_their_way(keeper: ReportKeeper, tmp_path: Path) -> None:
    for token in (1, 2, 3):
        keeper.keep(report(token))
        keeper.telling()

    assert read_kept(tmp_path) == [report(1), report(2), report(3)]


class _Died(BaseException):
    pass


class _Writes:
    """The worker dies in the middle of keeping a report: after so many writes into memory."""

    def __init__(self, map_: Any, lives: int) -> None:
        self._map, self._lives = map_, lives

    def _write(self) -> None:
        if not self._lives:
            raise _Died
        self._lives -= 1

    def __setitem__(self, place: slice, data: bytes) -> None:
        self._write()
        self._map[place] = data

    def pack(self, form: Any, place: int, values: tuple[Any, ...]) -> None:
        self._write()
        form.pack_into(self._map, place, *values)


class _Form:
    def __init__(self, form: Any) -> None:
        self._form, self.size, self.pack = form, form.size, form.pack

    def pack_into(self, kept: _Writes, place: int, *values: Any) -> None:
        kept.pack(self._form, place, values)


@pytest.mark.parametrize("lives", range(3))
def test_a_report_counts_from_the_last_write_on_and_not_before(
    lives: int, keeper: ReportKeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper.keep(report(50, size=500))  # what is left of it lies where the next ones go
    keeper.told()
    keeper.keep(report(1))
    real = keeper._map
    with monkeypatch.context() as patch:
        patch.setattr(kept_reports, "_WORD", _Form(kept_reports._WORD))
        keeper._map = _Writes(real, lives)  # type: ignore[assignment]
        try:
            keeper.keep(report(2, size=20))
            is_whole = True
        except _Died:
            is_whole = False
    keeper._map = real

    assert is_whole is (lives == 2)
    assert read_kept(tmp_path) == [report(1), report(2, size=20)][: 1 + is_whole]


def test_a_half_is_empty_before_a_reader_can_know_that_it_was_emptied(
    keeper: ReportKeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round a reader may take lengths of before for those of what the half is filled with anew."""
    keeper.keep(report(1))
    counter = keeper._map[: kept_reports._WORD.size]
    real = keeper._map
    with monkeypatch.context() as patch, pytest.raises(_Died):
        patch.setattr(kept_reports, "_WORD", _Form(kept_reports._WORD))
        keeper._map = _Writes(real, 1)  # type: ignore[assignment]
        keeper._empty(0)
    keeper._map = real

    assert keeper._map[: kept_reports._WORD.size] == counter
    assert read_kept(tmp_path) == []


@pytest.mark.parametrize("new_pages", range(1, 16))
def test_after_a_loss_of_power_no_report_is_of_two_moments(
    new_pages: int, keeper: ReportKeeper, tmp_path: Path
) -> None:
    """Of a mapped file, pages reach the disk one by one: in front the half as it is, behind it as it was."""
    before = [report(token, size=900) for token in range(1001, 1012)]
    after = [report(token, size=900) for token in range(2001, 2012)]  # each as long as its forerunner at that place
    ends = []
    for one in before:
        keeper.keep(one)
        ends.append(keeper._next[0])
    old = bytes(keeper._map)
    keeper.told()
    for one in after:
        keeper.keep(one)
    size = new_pages * 4096

    (tmp_path / KEPT_FILE).write_bytes(keeper._map[:size] + old[size:])

    whole = sum(end <= size for end in ends)  # and the one that the last new page cuts is of two moments
    assert read_kept(tmp_path) == [*before[whole + 1 :], *after[:whole]]


def _record(payload: bytes, id_length: int = 1, checksum: int | None = None) -> bytes:
    body = kept_reports._FACTS.pack(7, 0.5, id_length) + b"A" + payload
    head = kept_reports._HEAD.pack(16 + len(body), crc32(body) if checksum is None else checksum)
    return bytes(8) + head + body


def test_a_record_of_which_the_end_is_of_another_moment_is_left_out_however_alike(tmp_path: Path) -> None:
    """Sums of bytes do not tell these apart."""
    make_files(tmp_path)
    right = _record(b'[true, [], 0.5, null, {"amount": "1020.00"}]')
    wrong = right.replace(b"1020.00", b"1101.00")

    for kept, reports in (right, 1), (wrong, 0):
        (tmp_path / KEPT_FILE).write_bytes(kept.ljust(KEPT_BYTES, b"\0"))
        assert len(read_kept(tmp_path)) == reports


class _Bomb:
    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise AssertionError("a file was opened as a pickle")


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        bytes(100),
        bytes(KEPT_BYTES - 1),
        b"\xff" * KEPT_BYTES,
        _record(pickle.dumps(_Bomb(), 5)),
        _record(bytes(200)),
        _record(b"[]"),
        _record(b"[true, [], 1e999, null, {}"),
        _record(b"[" * 30_000),
        _record(b"[]", id_length=2**63),
        _record(b"[]", checksum=1),
    ],
)
def test_what_is_no_report_is_left_out(kept: bytes, tmp_path: Path) -> None:
    make_files(tmp_path)
    is_whole = len(kept) in (0, 100, KEPT_BYTES - 1)
    (tmp_path / KEPT_FILE).write_bytes(kept if is_whole else kept.ljust(KEPT_BYTES, b"\0"))

    assert read_kept(tmp_path) == []


class _ReadSlowly:
    """A half is emptied and filled again while it is copied for the first time: the copy is of both."""

    def __init__(self, keeper: ReportKeeper) -> None:
        self._keeper = keeper
        self._has_gone_on = False

    def __getitem__(self, place: slice) -> bytes:
        if place.stop - place.start < HALF_BYTES or self._has_gone_on:
            return self._keeper._map[place]
        self._has_gone_on = True
        middle = place.start + 40  # behind the head of the first record
        before = self._keeper._map[place.start : middle]
        self._keeper.told()
        self._keeper.keep(report(2, size=20))
        return before + self._keeper._map[middle : place.stop]


def test_a_reader_of_a_worker_that_goes_on_sees_no_mixture_of_two(keeper: ReportKeeper) -> None:
    keeper.keep(report(1, size=30))

    half = kept_reports._read_half(_ReadSlowly(keeper), 0)  # type: ignore[arg-type]

    assert list(kept_reports._records(half)) == [report(2, size=20)]
