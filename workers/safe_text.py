"""The one escape for text that came from outside, before it meets a terminal or a log."""

import unicodedata


def safe_text(text: str, max_chars: int | None = None) -> str:
    r"""Show `text` on one line that can neither steer a terminal nor forge a log line.

    Control characters (ESC, CR and LF among them), direction marks, invisible characters and lone surrogates
    come out as Python escapes (`\x1b`, `\u202e`); blanks and everything visible stay as they are.

    Args:
        text: anything; lone surrogates are fine.
        max_chars: cut to this many characters, the last of them an ellipsis. None: never cut.
    """
    safe = text if text.isprintable() else "".join(map(_safe_character, text))
    if max_chars is None or len(safe) <= max_chars:
        return safe
    return safe[: max(max_chars - 1, 0)] + "…"


def quoted(value: object, max_chars: int = 80) -> str:
    """A value as error messages show it: its repr, safe, at most `max_chars` long."""
    # The head is enough: the repr of a string of megabytes would be built only to be thrown away.
    head = value[: max_chars + 1] if isinstance(value, str | bytes) else value
    try:
        return safe_text(repr(head), max_chars)
    except Exception:  # a repr may raise anything (an int of 5,000 digits does); an error message must not
        return f"<{type(value).__name__}>"


def _safe_character(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")
