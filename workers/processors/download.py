"""Fetches the attachments that a PO's rows name into the PO's folder, over HTTP or HTTPS.

    <output_dir>/<safe name of the PO>/<name>-<digest of the URL>.<extension>

A file is streamed to a hidden name and renamed when it is whole. So a file under its final name is complete, and the
digest in it says of which URL: what an earlier attempt finished is kept, the rest is fetched again. One session a
worker keeps connections alive from PO to PO. Options (`--option NAME=VALUE`):

    url_columns       columns that hold URLs, separated by commas (default: each whose name contains "url")
    max_bytes         size limit of one file, such as 50M (default 100M)
    connect_timeout   for a connection to stand, such as 5s (default 10s)
    read_timeout      longest silence while an answer is read (default 30s)
    allow_hosts       hosts that may be asked, also after a redirect, separated by commas; `*.example.com` is each host
                      below it (default: any). Set it if you would not click on the links in your order files.
    user_agent        how to introduce ourselves (default poqueue)

What ends a PO at once, and what is tried again: 404, 410 and the other 4xx are final, except 408, 409, 423, 425 and
429, which pass; so are a cell that is no http(s) URL, a PO without any, a file beyond the limit, a host that is not
allowed and a sixth redirect. 429 and 503 are tried again when their Retry-After says (1 s to 1 h). Everything else
(other statuses, refused and cut connections, silence, a body shorter than announced) is tried again with the backoff.
A body longer than announced cannot be told from what a server sends next: it is taken at its announced length.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from email.message import Message
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin

from poqueue.errors import ConfigError
from workers.order_columns import RESERVED_NAMES
from workers.processing import GiveUp, RetryLater, WorkerContext
from workers.processors.names import digest, folder_name, slug
from workers.quantities import did_you_mean, nearest, parse_duration, parse_size
from workers.safe_text import quoted, safe_text

try:
    import urllib3
    from urllib3.exceptions import HTTPError, InvalidHeader, LocationParseError
    from urllib3.response import BaseHTTPResponse  # new in urllib3 2; 1.x takes a cut body for a whole one
    from urllib3.util import Url, parse_url
except ImportError as missing:
    raise ImportError("the download processor needs urllib3 2 or later: pip install 'poqueue[download]'") from missing

MAX_REDIRECTS = 5
CHUNK_BYTES = 64 * 1024
DISMISS_BYTES, DISMISS_S = 4096, 1.0
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PASSING_CLIENT_ERRORS = frozenset({408, 409, 423, 425, 429})
MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 3600.0

# A semicolon is also part of URLs ("/file;v=1"): it separates only where another URL, a blank or the end follows.
_SEPARATOR = re.compile(r"[\s|]+|;+(?=[\s|]|$|[A-Za-z][A-Za-z0-9+.-]*://)")
_FINISHED = re.compile(r".+-([0-9a-f]{10})(?:\.[A-Za-z0-9]{1,10})?")
_EXTENSION = re.compile(r"[A-Za-z0-9]{1,10}")


class FetchError(Exception):
    """A URL could not be fetched this time; another attempt may succeed."""


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """The processor's options, read and checked. Times are in seconds."""

    url_columns: tuple[str, ...] = ()
    max_bytes: int = 100 * 1024**2
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    allow_hosts: tuple[str, ...] = ()
    user_agent: str = "poqueue"

    @classmethod
    def read(cls, options: Mapping[str, str]) -> DownloadOptions:
        """Read what a person gave.

        Raises:
            ConfigError: an unknown option, or a value that cannot be used.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                hint = did_you_mean(nearest(name, known)) or f"; it has {', '.join(known)}"
                raise ConfigError(f"the download processor has no option {quoted(name)}{hint}")
        try:
            return cls(**{name: _READERS[name](value, name) for name, value in options.items()})
        except ValueError as error:
            raise ConfigError(f"the download processor's option {error}") from error


def _parse_names(value: str, option: str) -> tuple[str, ...]:
    names = tuple(filter(None, (part.strip() for part in value.split(","))))
    if not names:
        raise ValueError(f"{option} must be one or more names separated by commas, got {quoted(value)}")
    return names


def _parse_header_text(value: str, option: str) -> str:
    if not value.strip() or not (value.isascii() and value.isprintable()):
        raise ValueError(f"{option} must be printable ASCII text, got {quoted(value)}")
    return value.strip()


_READERS: dict[str, Any] = {
    "url_columns": _parse_names,
    "max_bytes": parse_size,
    "connect_timeout": partial(parse_duration, minimum_s=0.001),
    "read_timeout": partial(parse_duration, minimum_s=0.001),
    "allow_hosts": _parse_names,
    "user_agent": _parse_header_text,
}


class Download:
    """The processor; one instance a worker."""

    def setup(self, context: WorkerContext) -> None:
        """Read the options and open the session.

        Raises:
            ConfigError: an option cannot be used.
        """
        self._options = options = DownloadOptions.read(context.options)
        timeout = urllib3.Timeout(connect=options.connect_timeout, read=options.read_timeout)
        self._http = urllib3.PoolManager(timeout=timeout, headers={"User-Agent": options.user_agent})

    def process(self, po: Mapping[str, Any], context: WorkerContext) -> dict[str, Any]:
        """Fetch each URL of the PO once, in the order of its rows.

        Returns:
            downloads (the files), folder (below output_dir), files (count) and bytes (their sum).

        Raises:
            GiveUp: no URL, or some that no other attempt can fetch; the others have been fetched.
            RetryLater: the server asks to come back later.
            FetchError: this time it did not work; what is complete is kept for the next attempt.
            OSError: a file cannot be written.
        """
        urls = find_urls(po, self._options.url_columns)
        folder = Path(context.output_dir) / folder_name(po, context)
        files = self._fetch_missing(urls, folder)
        return {
            "downloads": [str(file) for file in files],
            "folder": folder.name,
            "files": len(files),
            "bytes": sum(file.stat().st_size for file in files),
        }

    def teardown(self) -> None:
        """Close the connections."""
        self._http.clear()

    def _fetch_missing(self, urls: Iterable[str], folder: Path) -> list[Path]:
        kept = _take_stock(folder)
        files, hopeless = [], []
        for url in urls:
            try:
                files.append(kept.get(digest(url)) or self._fetch(url, folder))
            except GiveUp as reason:
                hopeless.append(str(reason))  # the others are still wanted
        if hopeless:
            raise GiveUp("; ".join(hopeless))
        return files

    def _fetch(self, url: str, folder: Path) -> Path:
        with _network_errors(url):
            response, served_url = self._follow(url)
            try:
                self._refuse_beyond_limit(url, response.length_remaining or 0)
                name = file_name(url, served_url, response.headers.get("Content-Disposition"))
                return self._save(url, response, folder / name)
            finally:
                response.close()  # no-op if the body was read to its end: then the connection is back in the pool

    def _follow(self, url: str) -> tuple[BaseHTTPResponse, str]:
        """The final answer, its body unread, and the URL that gave it. Each hop is checked: the server chose it."""
        target = url
        for _ in range(MAX_REDIRECTS + 1):
            _check_url(target, self._options.allow_hosts)
            response = self._http.request("GET", target, preload_content=False, redirect=False, retries=False)
            if response.status == 200:
                return response, target
            _dismiss(response)
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or not location:
                raise _refusal(target, response)
            target = _joined(target, location)
        raise GiveUp(f"{_shown(url)}: more than {MAX_REDIRECTS} redirects")

    def _save(self, url: str, response: BaseHTTPResponse, file: Path) -> Path:
        part = file.with_name(f".{file.name}.part")
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with open(part, "xb", opener=partial(os.open, mode=0o600)) as sink:
                for chunk in response.stream(CHUNK_BYTES, decode_content=True):
                    self._refuse_beyond_limit(url, sink.tell() + len(chunk))
                    sink.write(chunk)
            if _is_cut(response):
                raise FetchError(f"{_shown(url)}: the compressed body ends before its end")
            os.replace(part, file)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return file

    def _refuse_beyond_limit(self, url: str, size_bytes: int) -> None:
        if size_bytes > self._options.max_bytes:
            raise GiveUp(
                f"{_shown(url)}: larger than max_bytes={self._options.max_bytes}; "
                "raise the limit with --option max_bytes=..."
            )


def find_urls(po: Mapping[str, Any], url_columns: tuple[str, ...] = ()) -> list[str]:
    """The URLs of a PO's rows, each once, in order. A cell may hold several, separated by blanks, `;` or `|`.

    Args:
        url_columns: names of columns, in any case. Empty: each column whose name contains "url".

    Raises:
        GiveUp: there is none, or a cell of such a column holds something else.
    """
    rows: list[Mapping[str, Any]] = po.get("rows") or [po]
    names = dict.fromkeys(name for row in rows for name in row if name not in RESERVED_NAMES)
    columns = _choose_columns(list(names), url_columns)
    cells = (str(row[column]) for row in rows for column in columns if row.get(column) is not None)
    urls = list(dict.fromkeys(url for cell in cells for url in _SEPARATOR.split(cell) if url))
    if not urls:
        raise GiveUp(f"nothing to download: no URL in {', '.join(map(quoted, columns))}")
    for url in urls:
        _check_url(url)
    return urls


def _choose_columns(names: list[str], wanted: tuple[str, ...]) -> list[str]:
    if not wanted:
        columns = [name for name in names if "url" in name.casefold()]
        if columns:
            return columns
        raise GiveUp(
            f"no column whose name contains 'url' (columns: {', '.join(map(quoted, names))}); "
            "name the columns with --option url_columns=..."
        )
    by_key = {name.casefold(): name for name in names}
    for name in wanted:
        if name.casefold() not in by_key:
            raise GiveUp(f"url_columns names {quoted(name)}, which is not a column{did_you_mean(nearest(name, names))}")
    return [by_key[name.casefold()] for name in wanted]


def file_name(url: str, served_url: str, content_disposition: str | None) -> str:
    """A safe name for what `url` gave, and for nothing else, as its digest stands in it.

    Args:
        served_url: where redirects led; the end of its path is the name if the server gives none.
        content_disposition: the header, which may hold anything.
    """
    given = _disposition_name(content_disposition) or unquote(_parse_url(served_url).path or "").rstrip("/")
    stem, _, extension = re.split(r"[/\\]", given)[-1].rpartition(".")
    if not stem or not _EXTENSION.fullmatch(extension):
        stem, extension = f"{stem}.{extension}", ""
    return f"{slug(stem) or 'file'}-{digest(url)}" + (f".{extension}" if extension else "")


def _disposition_name(header: str | None) -> str | None:
    message = Message()
    message["Content-Disposition"] = header or ""
    return message.get_filename()


def _take_stock(folder: Path) -> dict[str, Path]:
    """What earlier attempts completed, by the digest of its URL. What a killed one left half done is removed."""
    finished = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name.startswith(".") and file.name.endswith(".part"):
            file.unlink()
        elif found := _FINISHED.fullmatch(file.name):
            finished[found[1]] = file
    return finished


def _check_url(url: str, allow_hosts: tuple[str, ...] = ()) -> None:
    parts = _parse_url(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise GiveUp(f"{quoted(url)} is not an http:// or https:// URL")
    host = parts.host
    if allow_hosts and not any(_covers(pattern.lower(), host) for pattern in allow_hosts):
        raise GiveUp(f"{_shown(url)}: host {quoted(host)} is not in allow_hosts={','.join(allow_hosts)}")


def _parse_url(url: str) -> Url:
    # By the library that connects: where two parsers disagree about the host, allow_hosts would guard the wrong one.
    try:
        return parse_url(url)
    except LocationParseError as error:
        raise GiveUp(f"{quoted(url)} is not a URL") from error


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise GiveUp(f"{_shown(url)}: it redirects to {quoted(location)}, which is not a URL") from error


def _covers(pattern: str, host: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _refusal(url: str, response: BaseHTTPResponse) -> Exception:
    """How an answer other than 200 ends this attempt."""
    status = response.status
    message = f"{_shown(url)}: the server answered {status} {safe_text(response.reason or '', 60)}".rstrip()
    if 400 <= status < 500 and status not in PASSING_CLIENT_ERRORS:
        return GiveUp(message)
    after_s = _retry_after_s(response.headers.get("Retry-After")) if status in (429, 503) else None
    return FetchError(message) if after_s is None else RetryLater(message, after=after_s)


def _retry_after_s(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        seconds = urllib3.Retry().parse_retry_after(header)  # seconds, or the time until an HTTP date
    except (InvalidHeader, ValueError, OverflowError):
        return None
    return min(max(float(seconds), MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


def _dismiss(response: BaseHTTPResponse) -> None:
    """Let go of an answer whose body does not matter; a short one is read, so that the connection stays of use."""
    until = time.monotonic() + DISMISS_S
    with suppress(HTTPError):
        for _ in range(DISMISS_BYTES):  # one by one: to wait for more of one that comes in drops may take for ever
            if not response.read(1) or time.monotonic() > until:
                break
    response.close()


def _is_cut(response: BaseHTTPResponse) -> bool:
    """Whether a compressed body that is as long as announced ends too early: urllib3 only decodes what there is."""
    decoder = getattr(response, "_decoder", None)
    has_more_behind_its_end = getattr(decoder, "_state", 0) == 2  # GzipDecoderState.SWALLOW_DATA
    is_at_its_end = getattr(getattr(decoder, "_obj", None), "eof", True)
    return response.tell() > 0 and not has_more_behind_its_end and not is_at_its_end


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """One short message in place of urllib3's, which name its pools and not the URL."""
    try:
        yield
    except HTTPError as error:
        raise FetchError(f"{_shown(url)}: {type(error).__name__}: {safe_text(str(error), 200)}") from error


def _shown(url: str) -> str:
    """A URL for messages, without what may be secret in it: user, password and query."""
    return safe_text(_parse_url(url)._replace(auth=None, query=None, fragment=None).url, 120)
