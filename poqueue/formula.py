"""Text that came from outside, made safe to open in a spreadsheet."""

import re

_NUMBER = re.compile(r"\s*[-+]?(?:[0-9]+(?:[.,][0-9]+)*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\s*")
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[ \u00a0]*[\t\r\n]")  # OWASP's list; Excel runs the wide forms as well
_BLANKS_BEFORE_FORMULA = re.compile(r"(?<=\S)\s++(?=[=+\-@＝＋－＠])")


def guard_formula(text: str) -> str:
    """Text that no spreadsheet runs as a formula: a leading apostrophe where it would; numbers as they are."""
    has_lines = "\n" in text or "\r" in text
    if not has_lines and (not text or text[0].isalnum()):  # nearly all of them
        return text
    if _NUMBER.fullmatch(text):
        return text
    guarded = _BLANKS_BEFORE_FORMULA.sub(_guard_new_line, text) if has_lines else text
    return f"'{guarded}" if _FORMULA.match(text) else guarded


def _guard_new_line(blanks: re.Match[str]) -> str:
    """For programs that take a line break within a cell for the end of a row."""
    return f"{blanks[0]}'" if _has_lines(blanks[0]) else blanks[0]


def _has_lines(text: str) -> bool:
    return "\n" in text or "\r" in text
