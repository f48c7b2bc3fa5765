"""The settings of a run: where each value comes from, and what is refused with which words."""

import argparse
import json
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poqueue.errors import ConfigError
from poqueue.journal import JOURNAL_NAME
from workers import batch, sample
from workers.order_columns import KNOWN_FIELDS
from workers.own_process import usable_cores
from workers.progress import SilentProgress
from workers.resolved import Resolved, load_settings, render_config
from workers.safe_text import quoted, safe_text
from workers.setting_values import Timeout
from workers.settings import (
    SETTINGS,
    RunSettings,
    add_arguments,
    environment_name,
    given_settings,
    markdown_table,
    nearest_setting,
)

DEFAULT_YAML = Path(__file__).parents[2] / "configs" / "default.yaml"


def from_command_line(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="poqueue", allow_abbrev=False)
    add_arguments(parser)
    return given_settings(parser.parse_args(words))


def from_file(tmp_path: Path, text: str | bytes, **cli: Any) -> Resolved:
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(cli, path, {})


def refusal_of(tmp_path: Path, text: str | bytes, **cli: Any) -> str:
    with pytest.raises(ConfigError) as refusal:
        from_file(tmp_path, text, **cli)
    message = str(refusal.value)
    assert message.isprintable()
    return message.replace(str(tmp_path) + os.sep, "")


# ── where they go ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_setting_of_the_workers_reaches_the_supervisor_of_a_batch_and_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {
        "jobs": 3, "start_method": "forkserver", "grace": 4.0, "stop_grace": 5.0, "max_tasks_per_worker": 6,
        "max_memory_per_worker": 7 * 1024**3, "durability": "full", "max_retries": 8, "retry_delay": 9.0,
        "max_retry_delay": 10.0, "start_delay": 11.0, "timeout_floor": 12.0,
    }  # fmt: skip
    others = {"task_timeout": "200%,13s", "jitter": "0.5", "priority": "false", "journal": "true"}
    reached = {
        **asked, "task_timeout": 13.0, "timeout_share": 2.0, "retry_jitter": 0.5, "enable_priority": False,
        "journal": tmp_path / JOURNAL_NAME,
    }  # fmt: skip
    resolved = load_settings({**{key: str(value) for key, value in asked.items()}, **others}, None, {})
    for module in (batch, sample):
        monkeypatch.setattr(module, "Supervisor", lambda spec, **given: given)

    run = batch.Batch(tmp_path / "orders.csv", resolved)
    of_batch: Any = run.supervisor(tmp_path, 9, None, None, None, None, must_exist=False)  # type: ignore[arg-type]
    of_sample: Any = sample._supervisor(
        run.spec,
        resolved.settings,
        3,
        tmp_path,
        sample._Watch(9),
        SilentProgress(None),
        None,  # type: ignore[arg-type]
    )

    assert {key: of_batch[key] for key in reached} == reached
    assert {key: of_sample[key] for key in reached} == reached


# ── the defaults ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_any_source_everything_has_its_default() -> None:
    resolved = load_settings({}, None, {})

    assert resolved.settings == RunSettings()
    assert set(resolved.origins.values()) == {"default"}
    assert (resolved.settings.task_timeout.seconds, resolved.settings.max_retries, resolved.settings.retry_delay) == (
        300,
        3,
        5,
    )
    assert resolved.settings.jobs == usable_cores()
    assert resolved.settings.start_method == "spawn"
    assert resolved.settings.duplicates == "group"
    assert resolved.settings.priority


def test_the_commented_file_sets_every_key_to_its_default() -> None:
    resolved = load_settings({}, DEFAULT_YAML, {})

    assert resolved.settings == RunSettings()
    in_file = {key for key, origin in resolved.origins.items() if origin.startswith(str(DEFAULT_YAML))}
    assert in_file == {key for key, entry in SETTINGS.items() if not entry.is_cli_only}


def test_the_commented_file_names_every_flag() -> None:
    text = DEFAULT_YAML.read_text("utf-8")

    for entry in SETTINGS.values():
        spellings = [entry.flags[-1], entry.flags[-1].replace("--", "--no-"), *entry.flags]
        assert entry.is_cli_only or any(spelling in text for spelling in spellings), entry.flags


def test_the_commented_file_names_every_field_that_is_recognised() -> None:
    assert f"# {', '.join(KNOWN_FIELDS)}. Empty: recognised" in DEFAULT_YAML.read_text("utf-8")


def test_settings_pickle_so_that_workers_can_have_them() -> None:
    settings = load_settings({"options": {"a": "1"}, "jobs": 2}, None, {}).settings

    assert pickle.loads(pickle.dumps(settings)) == settings


# ── the order of the sources ─────────────────────────────────────────────────────────────────────────────────────────


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("# mine\njobs: 2\nmax_retries: 2\ntask_timeout: 2m\n")
    environ = {"POQUEUE_JOBS": "3", "POQUEUE_MAX_RETRIES": "4", "HOME": "/"}

    resolved = load_settings(from_command_line("-j", "5"), path, environ)

    assert (resolved.settings.jobs, resolved.origins["jobs"]) == (5, "command line")
    assert (resolved.settings.max_retries, resolved.origins["max_retries"]) == (4, "environment POQUEUE_MAX_RETRIES")
    assert (resolved.settings.task_timeout.seconds, resolved.origins["task_timeout"]) == (120.0, f"{path} line 4")
    assert (resolved.settings.grace, resolved.origins["grace"]) == (2.0, "default")


def test_every_setting_can_be_given_on_the_command_line() -> None:
    given = from_command_line(
        *("-p", "mine.orders:Session.process", "--shell", "--option", "url=http://h/?a=1,2", "--option", "b="),
        *("-j", "50%", "--timeout", "90s", "--retries", "0", "--retry-delay", "100ms", "--max-retry-delay", "1d"),
        *("--jitter", "10%", "--grace", "1", "--stop-grace", "1m", "--start-method", "fork"),
        *("--max-tasks-per-worker", "10", "--max-memory-per-worker", "500M", "--map", "po_number=PO,amount=Net = x"),
        *("--map", "supplier=Vendor", "--sheet", "2", "--delimiter", "tab", "--encoding", "cp1252", "--limit", "7"),
        *("--duplicates", "first", "--no-priority", "--check", "--run-dir", "here", "--report", "a.json"),
        *("--report", "b.CSV", "--results", "~/r.csv", "--no-progress", "-q", "-vv", "--log-format", "json"),
    )
    del given["shell"]

    settings = load_settings(given, None, {}).settings

    assert settings == RunSettings(
        processor="mine.orders:Session.process",
        options={"url": "http://h/?a=1,2", "b": ""},
        jobs=max(1, round(usable_cores() / 2)),
        task_timeout=Timeout(90.0),
        max_retries=0,
        retry_delay=0.1,
        max_retry_delay=86400.0,
        jitter=0.1,
        grace=1.0,
        stop_grace=60.0,
        start_method="fork",
        max_tasks_per_worker=10,
        max_memory_per_worker=500 * 1024**2,
        map={"po_number": "PO", "amount": "Net = x", "supplier": "Vendor"},
        sheet="2",
        delimiter="\t",
        encoding="cp1252",
        limit=7,
        duplicates="first",
        priority=False,
        check=True,
        run_dir=Path("here"),
        report=(Path("a.json"), Path("b.CSV")),
        results=Path.home() / "r.csv",
        progress=False,
        quiet=True,
        verbose=2,
        log_format="json",
    )


def test_a_flag_that_is_not_given_is_not_in_the_way_of_lower_sources() -> None:
    assert from_command_line() == {}


def test_a_switch_can_be_put_back_on_the_command_line() -> None:
    environ = {"POQUEUE_PRIORITY": "off", "POQUEUE_QUIET": "1", "POQUEUE_PROGRESS": "no"}

    settings = load_settings(from_command_line("--priority", "--no-quiet", "--progress"), None, environ).settings

    assert (settings.priority, settings.quiet, settings.progress) == (True, False, True)


def test_every_setting_but_check_can_be_given_in_the_environment() -> None:
    environ = {
        "POQUEUE_OPTIONS": "a=1, b=x=y",
        "POQUEUE_MAP": "po_number=PO,supplier=Vendor",
        "POQUEUE_REPORT": "a.json,b.yaml",
        "POQUEUE_MAX_MEMORY_PER_WORKER": "none",
        "POQUEUE_VERBOSE": "1",
    }

    settings = load_settings({}, None, environ).settings

    assert settings.options == {"a": "1", "b": "x=y"}
    assert settings.map == {"po_number": "PO", "supplier": "Vendor"}
    assert settings.report == (Path("a.json"), Path("b.yaml"))
    assert (settings.max_memory_per_worker, settings.verbose) == (None, 1)
    with pytest.raises(
        ConfigError, match=r"^environment variable POQUEUE_CHECK: check can only be .* as --check; unset it$"
    ):
        load_settings({}, None, {"POQUEUE_CHECK": "1"})


def test_none_on_the_command_line_takes_back_the_reports_of_the_environment() -> None:
    resolved = load_settings(from_command_line("--report", "none"), None, {"POQUEUE_REPORT": "a.json"})

    assert resolved.settings.report == ()


def test_options_and_maps_of_several_sources_are_joined_name_by_name(tmp_path: Path) -> None:
    text = "options:\n  browser: firefox\n  code: 012\n  flag: yes\n"

    resolved = from_file(tmp_path, text, options=["browser=chrome"])

    assert resolved.settings.options == {"browser": "chrome", "code": "012", "flag": "yes"}
    assert resolved.origins["options"] == f"command line, over {tmp_path / 'run.yaml'} line 1"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load_settings({}, None, {"POQUEUE_JOBS": "", "POQUEUE_CONFIG": ""}).origins["jobs"] == "default"
    assert load_settings({}, None, {"POQUEUE_DELIMITER": " "}).origins["delimiter"] == "default"


def test_a_variable_may_hold_a_tab() -> None:
    assert load_settings({}, None, {"POQUEUE_DELIMITER": "\t"}).settings.delimiter == "\t"


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "env.yaml"
    path.write_text("limit: 9")

    assert load_settings({}, None, {"POQUEUE_CONFIG": str(path)}).settings.limit == 9


def test_none_from_a_caller_counts_as_not_given() -> None:
    assert load_settings({"jobs": None}, None, {"POQUEUE_JOBS": "7"}).settings.jobs == 7


def test_a_python_caller_is_told_the_argument_not_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"^task_timeout must be .*, got nan$"):
        load_settings({"task_timeout": float("nan")}, None, {}, caller="run_batch")
    assert load_settings({"jobs": 2}, None, {}, caller="run_batch").origins["jobs"] == "run_batch"


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("wokers", "jobs"),
        ("workers", "jobs"),
        ("task-timeout", "task_timeout"),
        ("timeout", "task_timeout"),
        ("retries", "max_retries"),
        ("--retry-dealy", "retry_delay"),
        ("Jobs", "jobs"),
        ("concurrency", "jobs"),
        ("qqqq", None),
    ],
)
def test_an_unknown_name_is_told_the_key_that_it_means(name: str, meant: str | None) -> None:
    assert nearest_setting(name) == meant


def test_an_unknown_key_is_refused_with_its_line(tmp_path: Path) -> None:
    assert refusal_of(tmp_path, "jobs: 2\nwokers: 4") == "run.yaml:2: unknown key wokers (did you mean jobs?)"
    assert refusal_of(tmp_path, "qqqq: 4") == "run.yaml:1: unknown key qqqq"
    assert refusal_of(tmp_path, "<<: {jobs: 2}") == "run.yaml:1: unknown key <<"


def test_an_unknown_variable_is_refused_but_not_our_own() -> None:
    ours = {"POQUEUE_TESTING": "1", "POQUEUE_TEST_X": "1", "POQUEUE_FAILPOINT": "a:1:kill", "POQUEUE_RUN_ID": "r"}

    assert load_settings({}, None, ours | {"POQ": "1"}).settings == RunSettings()
    with pytest.raises(ConfigError) as refusal:
        load_settings({}, None, {"POQUEUE_WORKERS": "4"})
    expected = "unknown environment variable POQUEUE_WORKERS (did you mean POQUEUE_JOBS?); correct or unset it"
    assert str(refusal.value) == expected


def test_an_unknown_name_from_a_caller_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^unknown setting 'task_timout' \(did you mean task_timeout\?\)$"):
        load_settings({"task_timout": 3}, None, {})


def test_a_command_line_only_setting_is_refused_in_a_file(tmp_path: Path) -> None:
    assert "check can only be given on the command line, as --check" in refusal_of(tmp_path, "check: true")


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "text", "accepted"),
    [
        ("jobs", "0", "a whole number 1 to 256"),
        ("jobs", "true", "a whole number 1 to 256"),
        ("jobs", "1.5", "a whole number 1 to 256"),
        ("jobs", "012", "a whole number 1 to 256"),
        ("jobs", "1_000", "a whole number 1 to 256"),
        ("jobs", "[4]", "a whole number 1 to 256"),
        ("jobs", "{a: b}", "a whole number 1 to 256"),
        ("task_timeout", ".nan", "a duration from 100ms to 7d"),
        ("task_timeout", ".inf", "a duration from 100ms to 7d"),
        ("task_timeout", "0", "a duration from 100ms to 7d"),
        ("task_timeout", "none", "a duration from 100ms to 7d"),
        ("task_timeout", "12:30:45", "a duration from 100ms to 7d"),
        ("max_retries", "-1", "a whole number 0 to 1000"),
        ("max_retries", "1000000000", "a whole number 0 to 1000"),
        ("jitter", "2", "a share from 0 to 1"),
        ("max_memory_per_worker", "500", "a size from 1M"),
        ("limit", "0", "a whole number 1 to"),
        ("priority", "maybe", "true or false"),
        ("start_method", "forc", "one of spawn, forkserver, fork"),
        ("duplicates", "NO", "one of group, error, first, separate"),
        ("delimiter", "'::'", "one character"),
        ("delimiter", "'\"'", "one character"),
        ("encoding", "klingon", "an encoding"),
        *[("encoding", name, "an encoding") for name in ("base64", "rot13", "idna", "punycode", "undefined")],
        ("processor", "'mod:'", "module:attribute"),
        ("processor", "x", "module:attribute"),
        ("processor", "mod:func:x", "module:attribute"),
        ("processor", "''", "module:attribute"),
        ("processor", "../etc/x:y", "module:attribute"),
        ("command", "''", "a command line"),
        ("command", '"a\\0b"', "a command line"),
        ("app_dir", "/no/such/dir", "a directory that exists"),
        ("run_dir", "''", "a path"),
        ("report", "report.html", ".json, .csv, .yaml"),
        ("options", "[novalue]", "NAME=VALUE"),
        ("options", "{a: }", "NAME=VALUE"),
        ("options", "{'': x}", "NAME=VALUE"),
        ("map", "po_number", "field=Header"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_file_line_key_and_what_is_accepted(
    tmp_path: Path, key: str, text: str, accepted: str
) -> None:
    message = refusal_of(tmp_path, f"# a comment\n{key}: {text}\n")

    assert message.startswith(f"run.yaml:2: {key} must ")
    assert accepted in message
    assert "got " in message


def test_a_key_without_a_value_is_refused_unless_none_is_one(tmp_path: Path) -> None:
    assert "jobs has no value" in refusal_of(tmp_path, "jobs:\n")
    assert from_file(tmp_path, "limit:\nsheet: ~\nencoding: null\n").settings == RunSettings()


def test_bad_values_name_the_flag_or_the_variable_they_came_by() -> None:
    with pytest.raises(ConfigError, match=r"^--timeout must be a duration .*, got '5 parsecs'$"):
        load_settings(from_command_line("--timeout", "5 parsecs"), None, {})
    with pytest.raises(ConfigError, match=r"^environment variable POQUEUE_TASK_TIMEOUT must be .*, got 'inf'$"):
        load_settings({}, None, {"POQUEUE_TASK_TIMEOUT": "inf"})


@pytest.mark.parametrize("value", [True, 1.5, float("nan"), "", [], -1, 0, 10**6])
def test_python_values_are_checked_like_text(value: object) -> None:
    with pytest.raises(ConfigError, match="jobs must be"):
        load_settings({"jobs": value}, None, {})


def test_a_name_given_twice_in_one_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--option gives 'a' twice$"):
        load_settings(from_command_line("--option", "a=1", "--option", "a=2"), None, {})
    with pytest.raises(ConfigError, match=r"^--report names the same file twice"):
        load_settings(from_command_line("--report", "a.csv", "--report", "a.csv"), None, {})


# ── several settings together ────────────────────────────────────────────────────────────────────────────────────────


def test_a_retry_delay_above_its_limit_names_both_and_their_sources(tmp_path: Path) -> None:
    message = refusal_of(tmp_path, "max_retry_delay: 10s", retry_delay="5m")

    assert message == ("retry_delay (5m, command line) must not be longer than max_retry_delay (10s, run.yaml line 1)")


def test_processor_and_command_in_one_place_are_refused(tmp_path: Path) -> None:
    message = refusal_of(tmp_path, "command: tool {po_number}\nprocessor: a.b:c")

    assert "run.yaml:2: processor and run.yaml:1: command are both given" in message
    with pytest.raises(ConfigError, match=r"^--processor and --command are both given"):
        load_settings({"processor": "a:b", "command": "tool"}, None, {})


def test_a_command_from_above_takes_the_place_of_a_processor(tmp_path: Path) -> None:
    resolved = from_file(tmp_path, "processor: a.b:c", command="tool {url}")

    assert resolved.settings.command == "tool {url}"
    assert resolved.settings.processor == RunSettings().processor
    assert resolved.origins["processor"] == "not used, as a command is given"


def test_a_processor_from_above_takes_the_place_of_a_command(tmp_path: Path) -> None:
    resolved = from_file(tmp_path, "command: tool\nshell: true", processor="a.b:c")

    settings = resolved.settings
    assert (settings.processor, settings.command, settings.shell) == ("a.b:c", None, False)


def test_a_shell_without_any_command_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^shell \(command line\) needs a command"):
        load_settings({"shell": True}, None, {})


@pytest.mark.parametrize("other", ["./a.csv", "b/../a.csv", "link/a.csv", "{cwd}/a.csv"])
def test_outputs_may_not_be_one_file_however_it_is_spelt(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    other = other.format(cwd=tmp_path)

    with pytest.raises(ConfigError, match=r"^results and report name the same file: 'a.csv'$"):
        load_settings({"results": "a.csv", "report": [other]}, None, {})
    with pytest.raises(ConfigError, match=r"^results and report name the same file: 'a.csv'$"):
        load_settings({"results": "a.csv"}, None, {}, recorded={"report": [other]})
    with pytest.raises(ConfigError, match=r"^--report names the same file twice"):
        load_settings({"report": ["a.csv", other]}, None, {})


def test_a_link_and_what_it_points_to_are_two_outputs_as_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")

    load_settings({"results": str(tmp_path / "link.csv"), "report": [str(tmp_path / "a.csv")]}, None, {})


def test_results_and_report_may_not_be_one_file() -> None:
    with pytest.raises(ConfigError, match=r"^results and report name the same file: 'a.csv'$"):
        load_settings({"results": "a.csv", "report": ["a.csv"]}, None, {})


# ── the file itself ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_cannot_be_read_is_called_by_its_fault(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, fault in [
        (tmp_path / "missing.yaml", "configuration not found: "),
        (tmp_path, "configuration is a directory, not a file: "),
        (tmp_path / "fifo", "configuration is not a regular file: "),
        (tmp_path / "fifo" / "x", "configuration cannot be read: "),
    ]:
        with pytest.raises(ConfigError, match=f"^{fault}"):
            load_settings({}, path, {})


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "{}", "null"])
def test_a_file_that_sets_nothing_gives_the_defaults_and_a_note(tmp_path: Path, text: str) -> None:
    resolved = from_file(tmp_path, text)

    assert resolved.settings == RunSettings()
    assert resolved.notes == (f"{tmp_path / 'run.yaml'} sets nothing: every setting has its default",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: [1\nlimit: 2", "run.yaml:2:"),
        ("jobs: 1\n\tlimit: 2", "run.yaml:2:1: not valid YAML"),
        ("jobs: 'a", "run.yaml:1:"),
        ("jobs: 1\x1b", "run.yaml:1: character '\\x1b' is not allowed in YAML"),
        ("jobs: 1\n---\njobs: 2\n", "run.yaml:2: a second document begins here"),
        ("- jobs", "run.yaml:1: a configuration is made of lines 'key: value'"),
        ("just text", "run.yaml:1: a configuration is made of lines 'key: value'"),
        ("? [a, b]\n: 1", "run.yaml:1: a key must be a name"),
        ("jobs: 2\nlimit: 1\njobs: 3", "run.yaml:3: duplicate key jobs, lines 1 and 3"),
        ("options:\n  a: 1\n  a: 2", "run.yaml:3: duplicate key a, lines 2 and 3"),
        ("options:\n  a: [1, 2]", "run.yaml:2: options.a must be text, not a list or a mapping"),
        ("report: [[a.csv]]", "run.yaml:1: report must be text"),
        (
            "jobs: !!python/object/apply:os.system ['false']",
            "run.yaml:1: tag 'tag:yaml.org,2002:python/object/apply:os.s",
        ),
        ("jobs: !mine 3", "run.yaml:1: tag '!mine' is not allowed"),
        ("options: " + "[" * 3000 + "]" * 3000, "run.yaml:1: nested too deep (limit 50)"),
        ("options: &a [x]\nmap: [" + "*a," * 101 + "]", "run.yaml:2: too many aliases (limit 100)"),
        ("options: &a [*a]", "run.yaml:1: options must be text"),
        (b"jobs: \xff", "configuration is not UTF-8 at byte 6: run.yaml"),
        ("jobs: 2".encode("utf-16"), "configuration is not UTF-8 at byte 0: run.yaml"),
        (b"#" * 1_000_001, "configuration is larger than 1000000 bytes: run.yaml"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refusal_of(tmp_path, text).startswith(message)


def test_an_alias_bomb_is_refused_without_being_expanded(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    levels += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]

    assert "a1 must be text" in refusal_of(tmp_path, "\n".join(levels))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert from_file(tmp_path, b"\xef\xbb\xbfjobs: 3").settings.jobs == 3


def test_a_key_with_escape_codes_is_shown_harmless(tmp_path: Path) -> None:
    assert refusal_of(tmp_path, '"\\e[2J\\n2024 ERROR": 1') == "run.yaml:1: unknown key \\x1b[2J\\n2024 ERROR"


# ── what is made from the table ──────────────────────────────────────────────────────────────────────────────────────


def test_the_rendered_configuration_is_json_and_a_file_takes_it_back(tmp_path: Path) -> None:
    cli = {
        **{"options": {"a": "1"}, "report": ["a.json"], "max_memory_per_worker": "1.5G", "delimiter": "tab"},
        **{"run_dir": "x", "task_timeout": 90, "jobs": 3, "app_dir": str(tmp_path)},
    }
    resolved = load_settings(cli, None, {})

    rendered = render_config(resolved)

    values = {key: value for key, value, _ in rendered}
    assert (values["task_timeout"], values["max_memory_per_worker"], values["jobs"]) == ("90s", "1536M", 3)
    text = json.dumps({key: value for key, value in values.items() if key != "check"})
    assert from_file(tmp_path, text).settings == resolved.settings
    assert [key for key, _, _ in rendered] == [field.name for field in fields(RunSettings)]


_numbers = st.decimals("0.0000001", "1000000", places=7).map(lambda number: f"{number:f}")
_durations = st.builds("{}{}".format, _numbers, st.sampled_from(["ms", "s", "m", "h", "d", ""]))
_sizes = st.builds("{}{}".format, _numbers, st.sampled_from(["K", "M", "G", "T", ""]))
_words = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=5)
GIVEN: dict[str, st.SearchStrategy[Any]] = {  # of settings with a form of their own
    "task_timeout": _durations | st.builds("{}%,{}".format, _numbers, _durations) | st.builds("{}%".format, _numbers),
    "halt": st.builds("{},{}={}{}".format, *map(st.sampled_from, (["soon", "now"], ["fail", "success", "done"])),
                      _numbers, st.sampled_from(["%", ""])),
    "options": st.dictionaries(_words, _words),
    "map": st.dictionaries(_words, _words),
    "report": st.lists(st.builds("{}.json".format, _words)),
}  # fmt: skip
_anything = (
    _numbers | _durations | _sizes | _words | st.sampled_from(["true", "fork", "full", "none", "tab", "m:a", "50%"])
)


@given(st.data(), st.sampled_from(sorted(SETTINGS)))
def test_what_is_shown_of_a_setting_is_read_back_exactly(data: st.DataObject, key: str) -> None:
    entry = SETTINGS[key]
    try:
        value = entry.parse(data.draw(GIVEN.get(key, _anything)), key)
    except ValueError:
        return  # as much of it is

    shown = json.loads(json.dumps(entry.show(value)))  # as run.json keeps it

    assert entry.parse(shown, key) == value


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("task_timeout", "100.0001%,5m"),
        ("halt", "now,done=0.0000001%"),
        ("retry_delay", "0.1234567s"),
        ("grace", "1.5s"),
    ],
)
def test_a_setting_is_shown_with_all_its_digits(key: str, given: str) -> None:
    assert SETTINGS[key].show(SETTINGS[key].parse(given, key)) == given


def test_the_table_documents_every_setting() -> None:
    table = markdown_table()

    for key, entry in SETTINGS.items():
        assert f"| `{key}` |" in table
        assert all(f"`{flag}`" in table for flag in entry.flags)
        assert entry.is_cli_only or f"`{environment_name(key)}`" in table
    assert len({table_line.count("|") for table_line in table.replace("\\|", "").splitlines()}) == 1


def test_help_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        from_command_line("--help")
    assert "50%: that share of the cores" in " ".join(capsys.readouterr().out.split())


def test_settings_load_without_the_yaml_reader_where_there_is_no_file() -> None:
    code = "import sys, workers.resolved as s; s.load_settings({}, None, {}); print('yaml' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=DEFAULT_YAML.parents[1],
    )
    assert done.stdout == "False\n"


# ── safe text ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("PO-4711 Größe 発注 😀", "PO-4711 Größe 発注 😀"),
        ("x\n2024 ERROR admin", "x\\n2024 ERROR admin"),
        ("\x1b[2J\r\t\x07\x7f\x9b", "\\x1b[2J\\r\\t\\x07\\x7f\\x9b"),
        ("a\u202eb\u2066\u200f\u2028\ufeff", "a\\u202eb\\u2066\\u200f\\u2028\\ufeff"),
        ("\ud800", "\\ud800"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        ("", ""),
    ],
)
def test_safe_text_shows_what_is_visible_and_escapes_the_rest(text: str, safe: str) -> None:
    assert safe_text(text) == safe


def test_safe_text_is_cut_to_a_length() -> None:
    assert [safe_text("abcdef", n) for n in (6, 5, 1, 0)] == ["abcdef", "abcd…", "…", "…"]
    assert len(quoted("x" * 10**7)) == 80


def test_a_value_whose_repr_fails_is_still_named() -> None:
    class Sulky:
        def __repr__(self) -> str:
            raise RuntimeError

    assert quoted(Sulky()) == "<Sulky>"
