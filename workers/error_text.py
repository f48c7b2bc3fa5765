"""Messages of errors, reduced to what they have in common.

    "PO 4711: no route to 'https://a.example/x' after 3.2 s"  ──►  "PO <po>: no route to '…' after # s"

Two messages with the same reduced text are taken for the same error. A status code stays where it is said to be one:
HTTP 429 is not HTTP 503.
"""

import builtins
import functools
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from workers.history import LOST_WORKER

MAX_READ_CHARS = 2_000
MAX_CHARS = 240
MIN_PO_CHARS = 3  # a PO number "1" would be found everywhere
MIN_PART_CHARS = 4  # a shorter word is part of many that have nothing to do with it

_PLACEHOLDERS = [  # in this order: what holds other things comes first
    (re.compile(r"""(?<!\w)(?:'[^'\n]*'|"[^"\n]*"|`[^`\n]*`|“[^”\n]*”|‘[^’\n]*’|«[^»\n]*»)(?!\w)"""), "'…'"),
    (re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s'\"<>]+", re.IGNORECASE), "<url>"),
    (re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+"), "<address>"),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"(?<![\w.<])(?:[A-Za-z]:\\[^\s:'\",;)]+|~?/[^\s:'\",;()]*[^\s:'\",;().])"), "<path>"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "<hex>"),
    (re.compile(r"\b(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{8,64}\b", re.IGNORECASE), "<hex>"),
]
_SAYS_STATUS = r"(?<![^\W_])(?:http(?:/\d(?:\.\d)?)?(?: error)?|status|(?:status|http|error)[ _-]?code|server answered)"
_STATUS = rf"{_SAYS_STATUS}(?::? |[:=])[1-5]\d\d(?!\w|[.,:]\d)|(?<!\w)[45]\d\d (?:client|server) error\b"
_NUMBER = re.compile(rf"({_STATUS})|[-+]?\d+(?:[.,:]\d+)*", re.IGNORECASE)
_QUOTED = re.compile(r"""'.*'|".*"|`.*`|“.*”|‘.*’|«.*»""", re.DOTALL)  # greedy: what is quoted may hold a quote
_ORDINARY = re.compile(r"[A-Za-z]?[a-z]{0,20}")
_WORD = re.compile(r"\w+")
_NAME_PART = re.compile(r"^(\d{4}-\d\d-\d\d-\d{6}-)|[^\W_]+")  # the date of a run directory is nobody's data
_DOTTED = re.compile(r"[\w…#][\w…#-]*(?:\.[\w…#-]+)*\.[\w…#-]{2,}")  # of a host, mostly
_CUT_OFF = re.compile(r"\w+…$")
_MIXED = re.compile(r"[^\W\d]\d|\d[^\W\d]")  # letters and digits in one word: a code of somebody's
_OURS = re.compile(r"SIG[A-Z]{2,6}")
_TYPE = re.compile(r"[A-Z][A-Za-z]{2,60}(?:\.[A-Z][A-Za-z]{2,60})*")
_WORD_OR_REST = re.compile(r"<(?:po|url|address|id|path|hex|name)>|\w+|\W")
_PLACEHOLDER = re.compile(r"<[a-z]+>|[…#\x20-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7e]")
_FRAME = re.compile(r'^ {0,8}File "(?P<file>[^"\n]+)", line (?P<line>\d+)(?:,)? in (?P<function>[^\s(]+)', re.MULTILINE)
_KNOWN_TYPES = LOST_WORKER.union(dir(builtins))
_LIBRARY_MARK = "<library>/"
_LIBRARY = re.compile(
    r"^<library>/|/lib(?:64)?/python\d|/site-packages/|/dist-packages/|<frozen |/workers/worker\w*\.py$"
)
_CURRENT = re.compile(r"^Current thread .*\n", re.MULTILINE)


def normalised(message: str, po_number: str = "") -> str:
    """The message with numbers, quoted text, paths and the like replaced by placeholders, on one line."""
    text = message[:MAX_READ_CHARS]
    return _reduced(text.replace(po_number, "<po>") if len(po_number) >= MIN_PO_CHARS else text)


@functools.lru_cache(maxsize=1024)  # thousands of POs may fail alike
def _reduced(text: str) -> str:
    for pattern, placeholder in _PLACEHOLDERS:
        text = pattern.sub(placeholder, text)
    text = _NUMBER.sub(lambda found: found[1] or "#", text)
    text = " ".join(text.split())
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"


def without_data(message: str, po_number: str, po_words: Collection[str]) -> str:
    """The message without anything that could be data of a PO: only ordinary words that hold none of any PO's data stay.

    Ordinary is a word of plain lower-case letters, or with a capital in front at the beginning of the message.
    """
    bare = _WORD.sub(_unless_mixed, _QUOTED.sub("'…'", message[:MAX_READ_CHARS]))
    text = _CUT_OFF.sub("…", _DOTTED.sub("<name>", normalised(bare, po_number)))
    parts = _WORD_OR_REST.findall(text)
    kept = [part if _is_harmless(part, number == 0, po_words) else "…" for number, part in enumerate(parts)]
    return re.sub(r"…(?:\W*…)+", "…", "".join(kept)).strip()


def _unless_mixed(word: re.Match[str]) -> str:
    return "…" if _MIXED.search(word[0]) else word[0]


def type_without_data(error_type: str, po_words: Collection[str]) -> str:
    """The type of an error if it is one of Python's or ours, or looks like a class and holds no word of any PO's data."""
    if error_type in _KNOWN_TYPES:
        return error_type
    is_harmless = _TYPE.fullmatch(error_type) and not any(_holds_data(part, po_words) for part in error_type.split("."))
    return error_type if is_harmless else ""


def name_without_data(name: str, po_words: Collection[str]) -> str:
    """The name of a file, a folder or something in code, with … for each part that holds a word of any PO's data."""
    return _NAME_PART.sub(lambda part: "…" if not part[1] and _holds_data(part[0], po_words) else part[0], name)


def _is_harmless(part: str, is_first: bool, po_words: Collection[str]) -> bool:
    if _PLACEHOLDER.fullmatch(part) or _OURS.fullmatch(part):
        return True
    is_ordinary = _ORDINARY.fullmatch(part) is not None and (is_first or part.islower())
    return is_ordinary and not _holds_data(part, po_words)


def _holds_data(word: str, po_words: Collection[str]) -> bool:
    """Whether it is a word of a PO's data, or has one in it: a name with an ending, or joined with others.

    Each part is looked up: words are short, and POs many.
    """
    word = word.casefold()
    ends = range(MIN_PART_CHARS, len(word) + 1)
    parts = (word[begin:end] for end in ends for begin in range(end - MIN_PART_CHARS + 1))
    return word in po_words or any(part in po_words for part in parts)


class Frame(NamedTuple):
    """A place in Python code."""

    file: str
    line: int
    function: str

    @property
    def is_library(self) -> bool:
        """Whether it belongs to Python, an installed package or the worker's own loop."""
        return _LIBRARY.search(self.file) is not None

    @property
    def name(self) -> str:
        """The file without its folders."""
        return self.file.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.function} ({self.name}:{self.line})"


def frames(stack: str) -> list[Frame]:
    """The frames of a stack as faulthandler writes it, innermost first; of the thread that was working, if it says which.

    A traceback of an exception, which tells the innermost last, is read as well.
    """
    current = _CURRENT.search(stack)
    part = stack[current.end() :].split("\n\n", maxsplit=1)[0] if current else stack
    found = [Frame(m["file"], int(m["line"]), m["function"]) for m in _FRAME.finditer(part)]
    return found[::-1] if "Traceback (most recent call last)" in stack else found


def place(stack: str) -> str:
    """Where the code was, for people: the innermost frame, and the processor's own that led there."""
    found = frames(stack)
    if not found:
        return ""
    own = next((frame for frame in found if not frame.is_library), found[0])
    return str(found[0]) if own == found[0] else f"{found[0]}, called from {own}"


def stack_without_data(stack: str, po_words: Collection[str]) -> str:
    """The frames alone, files by their names: no message, no line of code, no word of any PO's data."""
    return "\n".join(_frame_lines(stack, po_words))


def _frame_lines(stack: str, po_words: Collection[str]) -> Iterator[str]:
    if "Traceback (most recent call last)" in stack:
        yield "Traceback (most recent call last):"
    for match in _FRAME.finditer(stack):
        if not match["file"].endswith(".py") and not match["file"].startswith("<frozen "):
            continue
        frame = Frame(match["file"], int(match["line"]), match["function"])
        if frame.is_library:
            yield f'  File "{_LIBRARY_MARK}{frame.name}", line {frame.line} in {frame.function}'
            continue
        name = name_without_data(frame.name.removesuffix(".py"), po_words)
        function = name_without_data(frame.function, po_words)
        yield f'  File "{name}.py", line {frame.line} in {function}'
