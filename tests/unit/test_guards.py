"""What keeps new POs from starting while the machine is short of something."""

from pathlib import Path

from workers.guards import MachineGuard, available_memory_bytes


def group(folder: Path, limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\ninactive_file {cached}\n")


def test_the_tightest_control_group_above_the_process_counts(tmp_path: Path) -> None:
    group(tmp_path / "a", "1000000", 900_000, 50_000)
    group(tmp_path / "a" / "b", "max", 900_000, 0)

    assert available_memory_bytes(tmp_path, "/a/b") == 150_000


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    group(tmp_path / "a", "max", 5, 0)

    assert available_memory_bytes(tmp_path, "/a") > 1_000_000


def test_it_holds_below_the_limit_and_goes_on_with_some_room_above(tmp_path: Path) -> None:
    available = [2000]
    guard = MachineGuard(tmp_path, memory_bytes=1000, memory_available=lambda: available[0])

    said = []
    for available[0] in (2000, 999, 1050, 1101, 1050, 999):
        said.append(guard.reason())

    assert [bool(reason) for reason in said] == [False, True, True, False, False, True]
    assert "memory" in said[1] and "--memfree" in said[1]


def test_the_room_above_a_large_limit_is_small_and_said(tmp_path: Path) -> None:
    limit, mebibyte = 20 * 1024**3, 1024**2
    available = [0]
    guard = MachineGuard(tmp_path, memory_bytes=limit, memory_available=lambda: available[0])

    said = []
    for available[0] in (limit - mebibyte, limit + 63 * mebibyte, limit + 64 * mebibyte):
        said.append(guard.reason())

    text = "new POs wait: memory available is below 20G (--memfree), and go on from 20544M"
    assert said == [text, text, ""]


def test_memory_and_disk_are_told_together(tmp_path: Path) -> None:
    guard = MachineGuard(tmp_path, 1000, 1000, memory_available=lambda: 1, disk_free=lambda folder: 1)

    assert "--memfree" in guard.reason() and "--diskfree" in guard.reason()


def test_no_limit_holds_nothing(tmp_path: Path) -> None:
    assert not MachineGuard(tmp_path, None, 0, memory_available=lambda: 0, disk_free=lambda folder: 0).reason()
