"""`--command`: a program for each PO, run without a shell, and everything that it starts ended with it."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.integration.console import Ended, outcomes, pids_with, poqueue, read_csv, state, tree, write_orders
from workers.processors.command import check_command

ARGV = "import json,os,sys; print(json.dumps(sys.argv[1:])); open(sys.argv[1], 'a').write(json.dumps(sys.argv[2:]) + '\\n')"
NASTY = [
    "; touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "| touch pwned",
    "' && touch pwned '",
    '"; touch pwned; "',
    "*",
    "-rf",
    "{po_number}",
    "a  b\tc",
    "$HOME",
    "x\ntouch pwned",
    "",
]


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """Values that a shell would run or split."""
    rows = [f'P{number},"{value.replace(chr(34), chr(34) * 2)}"' for number, value in enumerate(NASTY)]
    return write_orders(tmp_path / "orders.csv", *rows, header="po_number,Unit Price")


@pytest.fixture
def show_arguments(tmp_path: Path) -> Path:
    """A program that writes its arguments into the file that the first one names, a line a call."""
    path = tmp_path / "tools" / "show arguments.py"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{ARGV}\n")
    path.chmod(0o755)
    return path


def run_command(template: str, orders: Path, *words: str) -> Ended:
    options = ["--run-dir", "r", "-j", "2", "--retries", "0"]
    return poqueue("run", orders.name, "--command", template, *options, *words, cwd=orders.parent)


def said_by(path: Path) -> list[list[str]]:
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda words: int(words[0][1:]))


def test_every_value_arrives_as_one_argument(orders: Path, show_arguments: Path) -> None:
    run_command(f"'{show_arguments}' seen {{po_number}} '{{Unit Price}}' x={{Unit Price}} {{{{}}}}", orders).check(0)

    expected = [[f"P{number}", value, f"x={value}", "{}"] for number, value in enumerate(NASTY)]
    assert said_by(orders.parent / "seen") == expected
    assert tree(orders.parent) & {"pwned", "r/pwned"} == set()


@pytest.mark.once
def test_a_shell_gets_every_value_quoted(orders: Path, show_arguments: Path) -> None:
    run_command(f"echo ok && '{show_arguments}' seen {{po_number}} {{Unit Price}} | cat", orders, "--shell").check(0)

    assert said_by(orders.parent / "seen") == [[f"P{number}", value] for number, value in enumerate(NASTY)]
    assert not (orders.parent / "pwned").exists()


@pytest.mark.once
def test_no_value_is_read_by_the_shell_wherever_its_field_stands(orders: Path, show_arguments: Path) -> None:
    substituted = f"$('{show_arguments}' seen {{po_number}} {{Unit Price}})"
    template = f'f() {{{{ echo "{substituted}" `echo {{Unit Price}}`; }}}}; f # {{Unit Price}}'

    run_command(template, orders, "--shell").check(0)

    assert said_by(orders.parent / "seen") == [[f"P{number}", value] for number, value in enumerate(NASTY)]
    assert tree(orders.parent) & {"pwned", "r/pwned"} == set()


@pytest.mark.once
@pytest.mark.parametrize(
    "template",
    [
        'echo "{Unit Price}"',
        "echo {po_number} 'of {Unit Price}'",
        "echo $'{Unit Price}'",
        r"echo \{Unit Price}",
        'echo "$(echo "{Unit Price}")"',
        'echo "`echo ok` {Unit Price}"',
        'echo "${{x:-{Unit Price}}}"',
        "echo $(( {Unit Price} + 1 ))",
    ],
)
def test_a_field_within_quotes_of_a_shell_runs_nothing(template: str, orders: Path) -> None:
    before = tree(orders.parent)

    ended = run_command(template, orders, "--shell").check(2)

    assert "{Unit Price} stands within quotes" in ended.err and "take the quotes away" in ended.err
    assert tree(orders.parent) == before


@pytest.mark.once
@pytest.mark.parametrize(
    "template",
    [
        """echo "x"{Unit Price}"x" 'x'{Unit Price}""",
        'echo "$(echo "$(echo {Unit Price})" "x")" {Unit Price}',
        r"echo \" {Unit Price} \"",
        'echo x#"x" {Unit Price} # "{Unit Price}"',
        "case {Unit Price} in x) echo;; esac; echo $((1 + 1)) {Unit Price}",
    ],
)
def test_a_field_outside_of_the_quotes_is_taken(template: str) -> None:
    check_command(template, ["Unit Price"], is_shell=True)


@pytest.mark.once
def test_a_column_of_the_orders_does_not_take_the_place_of_a_field_of_the_run(
    tmp_path: Path, show_arguments: Path
) -> None:
    orders = write_orders(tmp_path / "orders.csv", "P1,x,y,z", header="po_number,output_dir,task_id,attempt")

    run_command(f"'{show_arguments}' seen {{po_number}} {{output_dir}} {{task_id}} {{attempt}}", orders).check(0)

    assert said_by(tmp_path / "seen") == [["P1", str(tmp_path / "r" / "output"), "t1", "1"]]


@pytest.mark.once
@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("echo {po_numbr}", "no field 'po_numbr' (did you mean po_number?)"),
        ("echo {unit price}", "(did you mean Unit Price?)"),
        ("echo 'never closed {po_number}", "No closing quotation"),
        ("echo {po_number", "--command"),
        ("echo {}", "--command"),
        ("echo {po_number!r}", "--command"),
        ("echo {po_number:>9}", "--command"),
        (" ", "--command"),
    ],
)
def test_a_template_that_cannot_be_filled_in_runs_nothing(template: str, said: str, orders: Path) -> None:
    before = tree(orders.parent)

    ended = run_command(template, orders).check(2)

    assert said in ended.err
    assert tree(orders.parent) == before


@pytest.mark.once
def test_an_exit_code_fails_the_attempt_and_is_retried(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A", "B", header="po_number")
    template = 'echo "try $PO_ATTEMPT of "{po_number}; [ {po_number} = A ] || exit 3'

    ended = run_command(template, orders, "--shell", "--retries", "2", "--retry-delay", "0s").check(1)

    failed = {row["po_number"]: row for row in read_csv(tmp_path / "r" / "results.csv")}["B"]
    assert (failed["status"], failed["attempts"]) == ("failed", "3")
    assert "exit code 3" in failed["error"] and "exit code 3" in ended.err
    log = (tmp_path / "r" / "run.log").read_text()
    assert [log.count(f"try {attempt} of B") for attempt in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.once
def test_a_program_named_by_a_path_is_found_from_wherever_the_run_goes_on(tmp_path: Path, show_arguments: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "P1", "P2", header="po_number")
    (tmp_path / "elsewhere").mkdir()
    template = "'tools/show arguments.py' seen {po_number} '{{ }}'"
    run_command(template, orders, "--limit", "1").check(0)

    again = poqueue("run", "--resume", "../r", "--limit", "2", "--accept-changes", cwd=tmp_path / "elsewhere").check(0)
    poqueue("run", "--resume", "r", "--command", template, cwd=tmp_path).check(5)  # it is the same program

    record = json.loads((tmp_path / "r" / "run.json").read_text())
    record["options"]["command"] = template  # as it was given
    (tmp_path / "r" / "run.json").write_text(json.dumps(record))
    poqueue("run", "--resume", "r", cwd=tmp_path).check(5)

    assert said_by(tmp_path / "seen") == [["P1", "{ }"]], again.err
    assert said_by(tmp_path / "elsewhere" / "seen") == [["P2", "{ }"]]


@pytest.mark.once
def test_a_signal_is_named(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A", header="po_number")

    ended = run_command("kill -SEGV $$ # {po_number}", orders, "--shell").check(1)

    assert "killed by SIGSEGV" in ended.err


@pytest.mark.once
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("no-such-program", "was not found"),
        ("./no-such-program", "was not found"),
        ("./folder", "is no program that can be started"),
        ("./plain.txt", "is no program that can be started"),
    ],
)
@pytest.mark.parametrize("words", [[], ["--check"]])
def test_a_program_that_cannot_be_started_runs_nothing(
    program: str, said: str, words: list[str], tmp_path: Path
) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A", header="po_number")
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain.txt").write_text("no program")
    before = tree(tmp_path)

    ended = run_command(f"{program} {{po_number}}", orders, *words).check(2)

    assert f"{program!r} {said}" in ended.err
    assert tree(tmp_path) == before


@pytest.mark.once
@pytest.mark.parametrize("program", ["no-such-program", "./folder", "./plain.txt"])
def test_a_program_of_a_po_that_cannot_be_started_fails_at_once(program: str, tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", f"A,{program}", header="po_number,tool")
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain.txt").write_text("no program")

    ended = run_command("{tool} {po_number}", orders, "--retries", "3", "--retry-delay", "1h").check(1)

    row = read_csv(tmp_path / "r" / "results.csv")[0]
    assert row["attempts"] == "1" and program in row["error"]
    assert program in ended.err


@pytest.mark.once
@pytest.mark.parametrize(
    ("program", "value", "said"),
    [
        ("./no-interpreter", "A", "the interpreter that its first line names"),
        ("./no-format", "A", "Exec format error"),
        ("./plain/tool", "A", "Not a directory"),
        ("./loop", "A", "symbolic links"),
        ("./" + "x" * 300, "A", "File name too long"),
        ("echo", "é" * 100_000, "Argument list too long"),
    ],
    ids=["interpreter", "format", "folder", "loop", "long name", "long value"],
)
def test_a_program_that_no_attempt_can_start_is_not_tried_again(
    program: str, value: str, said: str, tmp_path: Path
) -> None:
    orders = write_orders(tmp_path / "orders.csv", f"A,{program},{value}", header="po_number,tool,value")
    for name, text in (("no-interpreter", "#!/no/such/shell\r\n"), ("no-format", "\1\2\3"), ("plain", "")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "loop").symlink_to("loop")

    run_command("{tool} {value}", orders, "--retries", "3", "--retry-delay", "1h").check(1)

    row = read_csv(tmp_path / "r" / "results.csv")[0]
    assert row["attempts"] == "1" and row["error"].startswith("GiveUp: the command cannot be started: ")
    assert said in row["error"]


def test_what_a_command_started_dies_with_it_at_the_time_limit(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A", "B", header="po_number")
    # A child, one in a session of its own, and one that does not listen to TERM: each tells its pid and stays.
    stays = "exec sleep 600"
    template = (
        f"if [ {{po_number}} = B ]; then exit 0; fi; (echo $$ >> pids; {stays}) & "
        f"setsid sh -c 'echo $$ >> pids; {stays}' & "
        "sh -c 'trap \"\" TERM; echo $$ >> pids; while :; do sleep 600; done' & wait"
    )

    ended = run_command(template, orders, "--shell", "--timeout", "800ms", "--grace", "100ms").check(1)

    assert outcomes(tmp_path / "r") == {"A": "failed", "B": "succeeded"}
    assert "TaskTimeout" in ended.err
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3
    assert [pid for pid in pids if state(pid) not in ("", "Z", "X")] == []
    assert pids_with("PO_NUMBER", "A") == []


@pytest.mark.once
def test_a_command_reads_nothing_and_knows_its_po(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A", header="po_number")

    template = 'cat; printf "%s/%s/%s" "$PO_NUMBER" "$PO_ATTEMPT" "$PO_OUTPUT_DIR" > seen # {po_number}'
    run_command(template, orders, "--shell").check(0)

    assert (tmp_path / "seen").read_text() == f"A/1/{tmp_path / 'r' / 'output'}"
    assert os.path.isdir(tmp_path / "r" / "output")


@pytest.mark.once
def test_what_failed_in_a_shell_is_run_again_by_a_processor(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A", header="po_number")
    run_command("exit 1 # {po_number}", orders, "--shell").check(1)

    words = ["-p", "workers.processors.dossier:process", "--accept-changes"]
    poqueue("retry", "r", *words, cwd=tmp_path).check(0)

    assert outcomes(tmp_path / "r") == {"A": "succeeded"}


def test_command_and_processor_exclude_each_other(tmp_path: Path) -> None:
    orders = write_orders(tmp_path / "orders.csv", "A", header="po_number")

    ended = run_command("true", orders, "-p", "workers.processors.dossier:process").check(2)

    assert "--processor and --command are both given" in ended.err
