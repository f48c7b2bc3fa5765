"""A file is there whole or not at all, and what comes after it has taken its place undoes nothing."""

import errno
import os
import stat
from pathlib import Path

import pytest

from workers.whole_file import replacement, write_whole


def refuse_folders(descriptor: int) -> None:
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_a_file_system_that_keeps_no_folder_safe_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refuse_folders)
    path = tmp_path / "report.json"

    write_whole(["{", "}"], path)

    assert path.read_text() == "{}"
    assert os.listdir(tmp_path) == ["report.json"]


def test_what_breaks_off_leaves_the_file_of_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("before")

    with pytest.raises(RuntimeError), replacement(path) as file:
        file.write(b"half")
        raise RuntimeError

    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_file_and_then_its_folder_are_kept_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list[str]()
    monkeypatch.setattr(os, "fsync", lambda descriptor: kept.append(os.readlink(f"/proc/self/fd/{descriptor}")))

    write_whole("{}", tmp_path / "report.json")

    assert Path(kept[0]).parent == tmp_path
    assert kept[1:] == [str(tmp_path)]
