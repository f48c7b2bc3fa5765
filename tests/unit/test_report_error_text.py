"""Messages reduced to what they have in common, and to what holds no data."""

import time

import pytest

from workers.error_text import normalised, place, stack_without_data, type_without_data, without_data

STACK = """Thread 0x1 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 1 in wait

Current thread 0x00007f12 (most recent call first):
  File "/usr/lib/python3.11/socket.py", line 706 in readinto
  File "/opt/acme-secret/portal.py", line 42 in fetch
  File "/opt/poqueue/workers/worker.py", line 310 in _call
"""


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("HTTP 503 after 3.25 s", "HTTP 503 after # s"),
        ("http: 429, HTTP/1.1 503, HTTP Error 404: gone", "http: 429, HTTP/1.1 503, HTTP Error 404: gone"),
        ("Status=200 status_code: 301 error code 502", "Status=200 status_code: 301 error code 502"),
        ("429 Client Error: busy, 503 Server Error", "429 Client Error: busy, 503 Server Error"),
        ("https://h.example/a: the server answered 503", "<url> the server answered 503"),
        (
            "the server answered 429 Too Many Requests; answered 200",
            "the server answered 429 Too Many Requests; answered #",
        ),
        ("1429 Client Error, 503 clients, -503 Server Error", "# Client Error, # clients, # Server Error"),
        ("status 99, status 600, status 4711, status 150.00", "status #, status #, status #, status #"),
        ("exit code 137, po code 123, code=404", "exit code #, po code #, code=#"),
        ("decode 200, HTTP -200, status 200ms", "decode #, HTTP #, status #ms"),
        ("couldn't open '/a b/c' or \"x\"", "couldn't open '…' or '…'"),
        ("PO 4711-A is gone: 4711-A", "PO <po> is gone: <po>"),
        ("no file /srv/po/in/9.pdf.", "no file <path>."),
        (r"C:\tmp\x.txt is locked", "<path> is locked"),
        ("at https://h.example/po/1?x=2 twice", "at <url> twice"),
        ("at 0x7ffd12 and deadbeef99", "at <hex> and <hex>"),
        ("id 123e4567-e89b-12d3-a456-426614174000", "id <id>"),
        ("ask jane.doe@acme.example", "ask <address>"),
        ("two\n  lines", "two lines"),
        ("", ""),
    ],
)
def test_what_differs_from_po_to_po_becomes_a_placeholder(message: str, text: str) -> None:
    assert normalised(message, "4711-A") == text


def test_a_number_so_short_that_it_is_part_of_words_is_not_looked_for() -> None:
    assert normalised("no file at all", "al") == "no file at all"
    assert normalised("no file of all", "all") == "no file of <po>"


@pytest.mark.parametrize("text", ["'" * 60_000, "/a" * 30_000, "a." * 30_000 + "@", "f" * 60_000, "1," * 30_000])
def test_no_message_takes_long(text: str) -> None:
    begun = time.thread_time()
    normalised(text)
    without_data(text, "", frozenset())
    assert time.thread_time() - begun < 0.1  # a few ms; a pattern that looks at each end for each begin takes hundreds


def test_without_data_only_ordinary_words_are_left() -> None:
    message = "Cannot pay Initech 99.50 for 'it's a secret' to acme, code kx9z or ZX; see /home/jane/x and 日本"

    text = without_data(message, "", frozenset({"acme"}))

    assert text.startswith("Cannot pay … # for '…")
    for secret in ("Initech", "99", "secret", "acme", "kx", "ZX", "jane", "日本"):
        assert secret not in text


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("cannot resolve zebratrading.example", "cannot resolve <name>"),
        ("cannot resolve Kx9.initech.example now", "cannot resolve <name> now"),
        ("no plugin zebratrading, e.g. none", "no plugin …, e.g. none"),
        ("the quartzs portal is down", "the … portal is down"),
        ("Unzebraed: time is up", "…: time is up"),
        ("son of a reason, in person", "… of a reason, in person"),  # so short a word is in many that tell nothing
        ("a " * 117 + "quartz is closed", "a " * 117 + "…"),  # what is cut off is no word of the data any more
    ],
)
def test_a_word_of_the_data_is_hidden_also_where_it_is_part_of_another(message: str, text: str) -> None:
    assert without_data(message, "", frozenset({"zebra", "trading", "quartz", "son"})) == text


def test_our_own_message_of_a_kill_stays_readable_without_data() -> None:
    message = "took longer than 60 s (killed after 60.1 s; the worker ended by SIGKILL)"
    assert (
        without_data(message, "", frozenset()) == "took longer than # s (killed after # s; the worker ended by SIGKILL)"
    )


@pytest.mark.parametrize(
    ("error_type", "shown"),
    [
        ("TaskTimeout", "TaskTimeout"),
        ("requests.Timeout", ""),
        ("PO 4711 is gone", ""),
        ("Acme", ""),
        ("", ""),
        ("Portal.AcmeIsDown", ""),
        ("ValueError", "ValueError"),
        ("ValueMissing", ""),
    ],
)
def test_a_type_stays_if_it_looks_like_a_class_and_is_no_data(error_type: str, shown: str) -> None:
    assert type_without_data(error_type, frozenset({"acme", "value", "task"})) == shown


def test_the_place_is_the_innermost_frame_of_the_working_thread_and_the_processors_own() -> None:
    assert place(STACK) == "readinto (socket.py:706), called from fetch (portal.py:42)"
    assert place("no stack of the worker: it sleeps") == ""


def test_a_stack_without_data_tells_the_same_place_and_no_folder() -> None:
    reduced = stack_without_data(STACK, ())
    assert place(reduced.partition("\n")[2]) == place(STACK)
    assert "acme" not in reduced and "/usr" not in reduced


def test_a_traceback_is_read_from_its_end() -> None:
    traceback = (
        'Traceback (most recent call last):\n  File "/s/a.py", line 1, in outer\n    inner()\n'
        '  File "/s/b.py", line 2, in inner\nValueError: Initech\n'
    )
    assert place(traceback) == "inner (b.py:2)"
    assert "Initech" not in stack_without_data(traceback, ()) and "inner()" not in stack_without_data(traceback, ())
