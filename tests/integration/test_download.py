"""The download processor against a real server that misbehaves. Seen from outside: files, results, errors."""

import gzip
import os
import queue
import socket
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poqueue.errors import ConfigError
from tests.integration.http_server import (
    MAX_STALL_S,
    Behaviour,
    Handler,
    MisbehavingServer,
    answer,
    babble,
    chunked,
    drip,
    endless,
    hang_up,
    redirect,
    silence,
)
from workers.processing import GiveUp, RetryLater
from workers.processors.download import Download, DownloadOptions, FetchError, file_name, find_urls
from workers.processors.names import safe_name


@pytest.fixture(scope="module")
def shared_server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as server:
        yield server


@pytest.fixture
def server(shared_server: MisbehavingServer) -> MisbehavingServer:
    shared_server.hits.clear()
    shared_server.connections = 0
    return shared_server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Callable[..., dict[str, Any]]]]:
    """Set up a worker's processor with options; returns what fetches the URLs of a PO."""
    started: list[Download] = []

    def start_one(**options: str) -> Callable[..., dict[str, Any]]:
        context: Any = SimpleNamespace(output_dir=tmp_path, options=options)
        processor = Download()
        processor.setup(context)
        started.append(processor)
        return lambda *urls, number="PO-1": processor.process(a_po(*urls, number=number), context)

    yield start_one
    for processor in started:
        processor.teardown()


@pytest.fixture
def fetch(start: Callable[..., Callable[..., dict[str, Any]]]) -> Callable[..., dict[str, Any]]:
    return start()


def a_po(*cells: str | None, column: str = "url", number: str = "PO-1") -> dict[str, Any]:
    rows = [{"po_number": number, column: cell} for cell in cells]
    return {"po_number": number, "rows": rows, "row_numbers": list(range(2, 2 + len(rows)))}


def contents(result: dict[str, Any]) -> list[bytes]:
    return [Path(file).read_bytes() for file in result["downloads"]]


def left_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


# What works


def test_attachments_land_in_the_folder_of_their_po(server: MisbehavingServer, fetch: Any, tmp_path: Path) -> None:
    urls = [server.on("/docs/Invoice%201.pdf", answer(b"one")), server.on("/b.tar.gz", chunked(b"tw", b"o!"))]

    result = fetch(*urls, number="../PO/1")

    folder = tmp_path / safe_name("../PO/1")
    assert contents(result) == [b"one", b"two!"]
    assert {Path(file).parent for file in result["downloads"]} == {folder}
    assert (result["folder"], result["files"], result["bytes"]) == (folder.name, 2, 7)
    assert [Path(file).name.rpartition("-")[0] for file in result["downloads"]] == ["Invoice-1", "b-tar"]
    assert [Path(file).suffix for file in result["downloads"]] == [".pdf", ".gz"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(Path(file).stat().st_mode) for file in result["downloads"]} == {0o600}


def test_one_connection_serves_many_pos(server: MisbehavingServer, fetch: Any) -> None:
    for n in range(10):
        fetch(server.on(f"/{n}", answer(b"x" * n)), number=f"PO-{n}")

    assert server.connections == 1
    assert server.last_headers["User-Agent"] == "poqueue"


def test_refusals_and_redirects_keep_the_connection_too(server: MisbehavingServer, fetch: Any) -> None:
    with pytest.raises(GiveUp):
        fetch(server.on("/no", answer(b"not here", status=404)))
    with pytest.raises(FetchError):
        fetch(server.on("/oops", answer(b"failed", status=500)))
    server.on("/there", answer(b"x"))
    fetch(server.on("/here", redirect("/there")))

    assert server.connections == 1


def test_a_connection_that_the_server_closed_is_opened_again(server: MisbehavingServer, fetch: Any) -> None:
    fetch(server.on("/1", answer(b"1", headers={"Connection": "close"})))
    fetch(server.on("/2", answer(b"2")), number="PO-2")

    assert server.connections == 2


def test_a_url_named_twice_is_fetched_once(server: MisbehavingServer, fetch: Any) -> None:
    url = server.on("/same", answer(b"x"))

    assert fetch(url, url)["files"] == 1
    assert server.hits["/same"] == 1


def test_two_urls_with_one_name_give_two_files(server: MisbehavingServer, fetch: Any) -> None:
    named = {"Content-Disposition": 'attachment; filename="invoice.pdf"'}
    urls = [server.on("/1", answer(b"first", headers=named)), server.on("/2", answer(b"second", headers=named))]

    assert contents(fetch(*urls)) == [b"first", b"second"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_and_names_the_file(server: MisbehavingServer, fetch: Any, status: int) -> None:
    server.on("/files/real.pdf", answer(b"real"))

    result = fetch(server.on("/get", redirect("/files/real.pdf", status)))

    assert contents(result) == [b"real"]
    assert Path(result["downloads"][0]).name.startswith("real-")


def test_five_redirects_are_followed(server: MisbehavingServer, fetch: Any) -> None:
    for n in range(5):
        server.on(f"/hop{n}", redirect(f"/hop{n + 1}"))
    server.on("/hop5", answer(b"there"))

    assert contents(fetch(server.url("/hop0"))) == [b"there"]


def test_a_compressed_answer_is_stored_as_what_it_holds(server: MisbehavingServer, fetch: Any) -> None:
    url = server.on("/z.csv", answer(gzip.compress(b"a,b\n"), headers={"Content-Encoding": "gzip"}))

    assert contents(fetch(url)) == [b"a,b\n"]


@pytest.mark.parametrize(
    ("encoding", "body", "held"),
    [
        ("gzip", gzip.compress(b"one") + gzip.compress(b"two"), b"onetwo"),
        ("gzip", gzip.compress(b"one") + b"and no gzip", b"one"),
        ("gzip", b"", b""),
        ("deflate", zlib.compress(b"one"), b"one"),
    ],
    ids=["two members", "something behind", "empty", "deflate"],
)
def test_a_compressed_answer_that_is_odd_and_whole_is_stored(
    server: MisbehavingServer, fetch: Any, encoding: str, body: bytes, held: bytes
) -> None:
    url = server.on("/odd.csv", answer(body, headers={"Content-Encoding": encoding}))

    assert contents(fetch(url)) == [held]


def test_an_empty_file_is_a_file(server: MisbehavingServer, fetch: Any) -> None:
    assert contents(fetch(server.on("/empty", answer(b"")))) == [b""]


# What is final


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 451])
def test_a_refusal_for_good_gives_up(server: MisbehavingServer, fetch: Any, tmp_path: Path, status: int) -> None:
    with pytest.raises(GiveUp, match=rf"/gone: the server answered {status}"):
        fetch(server.on("/gone", answer(b"no", status=status, headers={"Retry-After": "1"})))

    assert left_in(tmp_path) == []


def test_a_lost_attachment_does_not_cost_the_others(server: MisbehavingServer, fetch: Any, tmp_path: Path) -> None:
    urls = [server.on("/a", answer(status=404)), server.on("/b", answer(b"b")), server.on("/c", answer(status=410))]

    with pytest.raises(GiveUp, match=r"/a: the server answered 404.*; .*/c: the server answered 410"):
        fetch(*urls)

    assert [name[:2] for name in left_in(tmp_path / safe_name("PO-1"))] == ["b-"]


def test_a_redirect_loop_gives_up(server: MisbehavingServer, fetch: Any) -> None:
    with pytest.raises(GiveUp, match="/loop: more than 5 redirects"):
        fetch(server.on("/loop", redirect("/loop")))

    assert server.hits["/loop"] == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/", "data:,x"])
def test_a_redirect_to_anything_but_http_is_refused(server: MisbehavingServer, fetch: Any, target: str) -> None:
    with pytest.raises(GiveUp, match=r"is not (an http:// or https:// URL|a URL)"):
        fetch(server.on("/away", redirect(target)))


def test_a_redirect_to_what_is_no_url_is_refused_and_both_are_named(server: MisbehavingServer, fetch: Any) -> None:
    with pytest.raises(GiveUp, match=r"/away: it redirects to 'http://\[::1', which is not a URL"):
        fetch(server.on("/away", redirect("http://[::1")))


def test_a_refusal_whose_body_comes_in_drops_is_not_waited_for(server: MisbehavingServer, fetch: Any) -> None:
    ends: queue.SimpleQueue[str] = queue.SimpleQueue()

    with pytest.raises(GiveUp, match="answered 404"):
        fetch(server.on("/drops", drip(404, ends.put)))

    assert ends.get(timeout=MAX_STALL_S) == "hung up"


def test_hosts_with_letters_of_any_language_are_urls() -> None:
    url = "http://bücher.example/Rechnung.pdf"

    assert find_urls(a_po(url)) == [url]


@pytest.mark.parametrize(
    "cell",
    ["file:///etc/passwd", "ftp://x/y", "n/a", "see mail", "http://", "http://[::1", "http://x:99999/", "/etc/x"],
)
def test_a_cell_that_holds_no_url_gives_up_and_fetches_nothing(
    server: MisbehavingServer, fetch: Any, tmp_path: Path, cell: str
) -> None:
    with pytest.raises(GiveUp, match="is not a"):
        fetch(server.on("/fine", answer(b"x")), cell)

    assert server.hits["/fine"] == 0
    assert left_in(tmp_path) == []


def test_a_po_without_a_url_gives_up(fetch: Any) -> None:
    with pytest.raises(GiveUp, match="nothing to download: no URL in 'url'"):
        fetch(None, "  ; | ")


@pytest.mark.parametrize(
    "behaviour",
    [
        answer(b"x" * 2001),
        answer(b"", length=10**15),
        answer(b"x" * 2001, length=None),
        chunked(b"x" * 1500, b"x" * 501),
        endless,
        answer(gzip.compress(b"x" * 10**6), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["announced", "announced-huge", "until-close", "chunked", "endless", "compressed"],
)
def test_a_file_beyond_the_limit_gives_up(
    server: MisbehavingServer, start: Any, tmp_path: Path, behaviour: Behaviour
) -> None:
    fetch = start(max_bytes="2000")

    with pytest.raises(GiveUp, match=r"/big: larger than max_bytes=2000"):
        fetch(server.on("/big", behaviour))

    assert left_in(tmp_path / safe_name("PO-1")) == []
    assert fetch(server.on("/fits", answer(b"x" * 2000)), number="PO-2")["bytes"] == 2000


def test_only_allowed_hosts_are_asked(server: MisbehavingServer, start: Any) -> None:
    url = server.on("/x", answer(b"x"))
    server.on("/away", redirect("http://localhost:1/secret"))
    fetch = start(allow_hosts="files.example.com, 127.0.0.1")

    assert fetch(url)["files"] == 1
    for refused in ("http://localhost:1/x", "http://127.0.0.1@localhost:1/x", server.url("/away")):
        with pytest.raises(GiveUp, match=r"host 'localhost' is not in allow_hosts=files\.example\.com,127\.0\.0\.1"):
            fetch(refused, number="PO-2")


def test_a_url_that_parsers_read_in_two_ways_goes_to_the_host_that_was_checked(
    server: MisbehavingServer, start: Any
) -> None:
    url = server.url("\\@localhost:1/x")  # to urllib.parse the host is localhost, to urllib3 it is the server

    with pytest.raises(GiveUp, match="the server answered 404"):
        start(allow_hosts="127.0.0.1")(url)
    with pytest.raises(GiveUp, match=r"host '127\.0\.0\.1' is not in allow_hosts"):
        start(allow_hosts="localhost")(url)


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No host has an address; nobody outside is asked."""

    def resolve(*_args: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.usefixtures("no_names")
@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [("a.example.com", True), ("A.EXAMPLE.COM", True), ("example.com", False), ("evilexample.com", False)],
)
def test_a_star_allows_the_hosts_below(start: Any, host: str, is_allowed: bool) -> None:
    with pytest.raises(FetchError if is_allowed else GiveUp):
        start(allow_hosts="*.example.com")(f"http://{host}/")


# What is tried again


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "after_s"), [("7", 7.0), (" 7 ", 7.0), ("0", 1.0), ("999999", 3600.0), ("9" * 400, 3600.0)]
)
def test_retry_after_in_seconds_is_obeyed_within_bounds(
    server: MisbehavingServer, fetch: Any, status: int, retry_after: str, after_s: float
) -> None:
    with pytest.raises(RetryLater, match=rf"/busy: the server answered {status}") as caught:
        fetch(server.on("/busy", answer(b"busy", status=status, headers={"Retry-After": retry_after})))

    assert caught.value.after == after_s


@pytest.mark.parametrize(("in_s", "low", "high"), [(120, 60, 121), (-3600, 1, 1), (10**6, 3600, 3600)])
def test_retry_after_as_a_date_is_obeyed_within_bounds(
    server: MisbehavingServer, fetch: Any, in_s: int, low: float, high: float
) -> None:
    date = formatdate(time.time() + in_s, usegmt=True)

    with pytest.raises(RetryLater) as caught:
        fetch(server.on("/busy", answer(status=429, headers={"Retry-After": date})))

    assert caught.value.after is not None
    assert low <= caught.value.after <= high


@pytest.mark.parametrize("retry_after", [None, "", "soon", "-5", "1.5", "9" * 5000, "Mon, 99 Foo 2024"])
def test_busy_without_a_usable_retry_after_takes_the_backoff(
    server: MisbehavingServer, fetch: Any, retry_after: str | None
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}

    with pytest.raises(FetchError, match="the server answered 503"):
        fetch(server.on("/busy", answer(status=503, headers=headers)))


@pytest.mark.parametrize("status", [204, 304, 408, 409, 423, 425, 500, 502, 504, 599])
def test_any_other_answer_is_tried_again(server: MisbehavingServer, fetch: Any, status: int) -> None:
    with pytest.raises(FetchError, match=f"/odd: the server answered {status}"):
        fetch(server.on("/odd", answer(status=status)))


def half_then(then: Callable[[Handler], None]) -> Behaviour:
    return answer(b"half", length=8, then=then)


@pytest.mark.parametrize(
    "behaviour",
    [
        half_then(hang_up),
        half_then(Handler.cut),
        half_then(silence),
        chunked(b"half", is_whole=False),
        silence,
        hang_up,
        Handler.cut,
        babble,
        answer(b"not gzip", headers={"Content-Encoding": "gzip"}),
        answer(gzip.compress(os.urandom(5000))[:-2500], headers={"Content-Encoding": "gzip"}),
        answer(gzip.compress(b"one") + gzip.compress(b"two")[:-4], headers={"Content-Encoding": "gzip"}),
        answer(zlib.compress(os.urandom(5000))[:-2500], headers={"Content-Encoding": "deflate"}),
        answer(b"x", status=302, headers={"Location": ""}),
    ],
    ids=[
        "too-short",
        "cut",
        "stalls",
        "chunk-missing",
        "silent",
        "hangs-up",
        "resets",
        "no-http",
        "bad-gzip",
        "half-gzip",
        "gzip-and-a-half",
        "half-deflate",
        "nowhere",
    ],
)
def test_what_fails_midway_leaves_nothing_and_the_next_attempt_succeeds(
    server: MisbehavingServer, start: Any, tmp_path: Path, behaviour: Behaviour
) -> None:
    fetch = start(read_timeout="200ms")
    url = server.on("/flaky.pdf", behaviour, answer(b"complete"))

    with pytest.raises(FetchError) as caught:
        fetch(url)

    assert str(caught.value).startswith(url)
    assert left_in(tmp_path / safe_name("PO-1")) == []

    assert contents(fetch(url)) == [b"complete"]
    assert len(left_in(tmp_path / safe_name("PO-1"))) == 1


def test_a_body_longer_than_announced_spoils_no_later_answer(server: MisbehavingServer, fetch: Any) -> None:
    lying = server.on("/long", answer(b"12345HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", length=5))

    assert contents(fetch(lying)) == [b"12345"]
    assert contents(fetch(server.on("/next", answer(b"good")), number="PO-2")) == [b"good"]


def test_a_port_where_nobody_listens_is_tried_again(fetch: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refuses, and nobody else gets the port

        with pytest.raises(FetchError, match="NewConnectionError"):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/x")


@pytest.mark.usefixtures("no_names")
def test_a_host_that_does_not_exist_is_tried_again(fetch: Any) -> None:
    with pytest.raises(FetchError, match="NameResolutionError"):
        fetch("http://nowhere.invalid/x")


def test_what_an_earlier_attempt_completed_is_not_fetched_again(server: MisbehavingServer, fetch: Any) -> None:
    first = server.on("/first", answer(b"1"))
    second = server.on("/second", answer(status=500), answer(b"2"))
    with pytest.raises(FetchError):
        fetch(first, second)

    result = fetch(first, second)

    assert contents(result) == [b"1", b"2"]
    assert server.hits == {"/first": 1, "/second": 2}


def test_what_a_killed_attempt_left_half_done_is_removed(server: MisbehavingServer, fetch: Any, tmp_path: Path) -> None:
    url = server.on("/a.pdf", answer(b"whole"))
    folder = tmp_path / safe_name("PO-1")
    folder.mkdir()
    (folder / f".{file_name(url, url, None)}.part").write_bytes(b"who")
    (folder / ".other-0123456789.pdf.part").write_bytes(b"")

    assert contents(fetch(url)) == [b"whole"]
    assert left_in(folder) == [file_name(url, url, None)]


def test_messages_do_not_tell_secrets(server: MisbehavingServer, fetch: Any) -> None:
    url = server.on("/secret", answer(status=500)).replace("http://", "http://user:pass@") + "?token=hush#part"

    with pytest.raises(FetchError) as caught:
        fetch(url)

    assert not any(secret in str(caught.value) for secret in ("user", "pass", "token", "hush"))


# Names


@pytest.mark.parametrize(
    ("header", "stem", "suffix"),
    [
        ('attachment; filename="../../etc/passwd"', "passwd", ""),
        ('attachment; filename="..\\\\..\\\\win.ini"', "win", ".ini"),
        ('attachment; filename="/abs/olute.txt"', "olute", ".txt"),
        ('attachment; filename=".."', "file", ""),
        ('attachment; filename=".bashrc"', "bashrc", ""),
        ('attachment; filename=""', "path", ".bin"),
        ("attachment; filename*=UTF-8''%e2%82%ac%20r%C3%A9sum%C3%A9.pdf", "resume", ".pdf"),
        ("attachment; filename*=no-such-charset''%ff%2f..%2fx.pdf", "x", ".pdf"),
        ('attachment; filename="a.b;c.pdf"', "a-b-c", ".pdf"),
        ('inline; filename="x.%s"' % ("e" * 50), "x-", ""),
        (";;;===", "path", ".bin"),
        (None, "path", ".bin"),
    ],
)
def test_a_name_from_the_server_is_only_a_name(header: str | None, stem: str, suffix: str) -> None:
    name = file_name("http://h/a/path.bin", "http://h/a/path.bin", header)

    assert name.startswith(stem)
    assert Path(name).suffix == suffix


@given(st.text(), st.text(st.characters(max_codepoint=255)))
def test_any_path_and_any_header_give_a_name_inside_the_folder(path: str, header: str) -> None:
    url = "http://host/x"
    for disposition in (header, f'attachment; filename="{header}"', f"attachment; filename*=utf-8''{header}"):
        try:
            name = file_name(url, f"http://host/{path}", disposition)
        except GiveUp:
            continue
        assert (Path("folder") / name).parent == Path("folder")
        assert name.isascii()
        assert not name.startswith((".", "-"))
        assert len(name) < 80


# Which URLs


def test_a_cell_may_hold_several_urls() -> None:
    cell = "http://h/a http://h/b;http://h/c ; http://h/d|http://h/e\nhttps://h/f;v=1;http://h/g;"

    urls = find_urls(a_po(cell, None, "http://h/a"))

    assert urls == [f"http://h/{name}" for name in "abcde"] + ["https://h/f;v=1", "http://h/g"]


def test_columns_are_found_by_name_or_as_told() -> None:
    rows = [{"po_number": "1", "Invoice URL": "http://h/1", "Link": "http://h/2", "as_given": {"url": "x"}}]
    po = {"po_number": "1", "Invoice URL": "http://h/1", "rows": rows, "row_numbers": [2]}

    assert find_urls(po) == ["http://h/1"]
    assert find_urls(po, ("link",)) == ["http://h/2"]
    assert find_urls(po, ("Link", "invoice url")) == ["http://h/2", "http://h/1"]
    assert find_urls({"po_number": "1", "url": "http://h/1"}) == ["http://h/1"]
    with pytest.raises(GiveUp, match=r"'Lnik', which is not a column \(did you mean Link\?\)"):
        find_urls(po, ("Lnik",))
    with pytest.raises(GiveUp, match=r"no column whose name contains 'url' \(columns: 'po_number', 'link'\)"):
        find_urls(a_po("http://h/1", column="link"))


# Options


def test_options_are_read() -> None:
    options = DownloadOptions.read(
        {"url_columns": " Link , PDF", "max_bytes": "50M", "connect_timeout": "2s", "read_timeout": "1m",
         "allow_hosts": "a.example,*.b.example", "user_agent": "acme/1 (ops@acme.example)"}
    )  # fmt: skip

    assert options == DownloadOptions(
        ("Link", "PDF"), 50 * 1024**2, 2.0, 60.0, ("a.example", "*.b.example"), "acme/1 (ops@acme.example)"
    )
    assert DownloadOptions.read({}) == DownloadOptions()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_byte": "1"}, r"has no option 'max_byte' \(did you mean max_bytes\?\)"),
        ({"zzz": "1"}, "has no option 'zzz'; it has url_columns, max_bytes"),
        ({"max_bytes": "lots"}, "max_bytes must be a size .*, got 'lots'"),
        ({"max_bytes": "0"}, "max_bytes must be a size"),
        ({"read_timeout": "0"}, "read_timeout must be a duration"),
        ({"connect_timeout": "-1"}, "connect_timeout must be a duration"),
        ({"allow_hosts": " , "}, "allow_hosts must be one or more names"),
        ({"url_columns": ""}, "url_columns must be one or more names"),
        ({"user_agent": "a\r\nX-Evil: 1"}, "user_agent must be printable"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DownloadOptions.read(options)


def test_the_options_reach_the_server(server: MisbehavingServer, start: Any) -> None:
    start(user_agent="acme/1")(server.on("/x", answer(b"x")))

    assert server.last_headers["User-Agent"] == "acme/1"
