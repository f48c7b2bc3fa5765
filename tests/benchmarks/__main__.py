"""Measure poqueue and its peers: `python -m tests.benchmarks --help`. The peers: `pip install 'poqueue[bench]'`."""

import argparse
import compileall
import json
import os
import platform
import signal
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.cases import CASES, ROOT
from tests.benchmarks.pools import OPENERS, TITLES
from tests.benchmarks.poqueue_pool import has_journal_setting
from tests.benchmarks.runner import Measurement, pick_cases, run_all
from tests.benchmarks.summary import Summary
from tests.benchmarks.tables import as_json, headline, markdown, measured_table, number, target_rows, targets_table

PACKAGES = ("pebble", "mpire", "loky", "joblib")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", default="", metavar="W1,W2", help=f"workloads out of {', '.join(CASES)}")
    parser.add_argument(
        "--pools",
        default="",
        metavar="P,Q",
        help=f"pools out of {', '.join([*OPENERS, 'queue', 'queue-lots', 'manager'])}",
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds; medians are shown (default 3)")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="share of each workload's size (default 1)"
    )
    parser.add_argument("--patience", type=float, default=20.0, metavar="S",
                        help="seconds to wait for a quiet machine before each measurement; 0 takes it as it is")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--markdown", action="store_true", help="print the README's tables")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; the exit code is 1 if a PO was lost by poqueue."""
    options = parse(arguments)
    try:
        cases, pools = pick_cases(options.only), _pick_pools(options.pools)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs is ended on the way out
    for package in (
        "poqueue",
        "workers",
        "tests/benchmarks",
    ):  # as pip does: else each process may compile all of it again
        compileall.compile_dir(ROOT / package, quiet=2)
    done: list[Measurement] = []
    try:
        for one in run_all(cases, pools, options.repeat, options.scale, options.patience, _tell):
            done.append(one)
    except KeyboardInterrupt:
        print("Interrupted: what follows is what was measured until then.", file=sys.stderr)
    summary = Summary(done)
    about = _about(options)
    print(markdown(summary) if options.markdown else _text(summary, about, options.scale))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(summary, about), indent=1), encoding="utf-8")
    return int(any(one.figures.get("lost") for one in done if one.pool not in _peers()))


def _pick_pools(names: str) -> list[str]:
    known = {pool for case in CASES.values() for pool in case.pools}
    picked = names.split(",") if names else []
    if strange := [name for name in picked if name not in known]:
        raise ValueError(f"there is no pool {strange[0]!r}; there are {', '.join(sorted(known))}")
    return picked


def _peers() -> set[str]:
    return {name for name in OPENERS if not name.startswith("poqueue")}


def _tell(one: Measurement) -> None:
    figure, unit, _ = headline(one.case)
    told = one.reason or f"{number(one.figures[figure])} {unit}"
    noise = (
        "" if one.noise.is_quiet else f"   not quiet: others used {max(one.noise.before, one.noise.during):.2f} cores"
    )
    print(f"{one.round + 1}  {one.case:16} {TITLES[one.pool]:28} {told}{noise}", file=sys.stderr, flush=True)


def _about(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.release(),
        "cores": os.cpu_count(),
        "temporary_files_on": _file_system(),
        "repeat": options.repeat,
        "scale": options.scale,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _file_system() -> str:
    """A journal in memory would be none: its figures count on a disk only."""
    folder = tempfile.gettempdir()
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.startswith(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _text(summary: Summary, about: dict[str, Any], scale: float) -> str:
    parts = [measured_table(summary)]
    if scale == 1.0 and target_rows(summary):
        parts.append(targets_table(summary))
    noisy = sum(not one.noise.is_quiet for one in summary.measurements if not one.reason)
    if noisy:
        parts.append(
            f"The machine was not quiet in {noisy} of {len(summary.measurements)} measurements; they are marked."
        )
    if scale != 1.0:
        parts.append(f"Scaled by {scale:g}: the targets do not apply.")
    if not has_journal_setting():
        parts.append("This poqueue has no journal: its rows are left out.")
    parts.append(
        f"Python {about['python']}, {about['cores']} cores, journal on {about['temporary_files_on']}; {about['packages']}"
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
