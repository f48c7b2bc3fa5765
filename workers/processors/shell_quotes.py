"""Where a shell would find a field within quotes: no quoted value can stand there."""

import re

FIELD_MARK = 0xF0000  # a plane of Unicode for private use: each field of the line is one character of it
_FIELD = re.compile(f"[{chr(FIELD_MARK)}-{chr(FIELD_MARK + 0xFFFD)}]")
_SUM, _FIELD_OR_END = r"\$\(\(.*?\)\)", rf"[)`\"]|{_FIELD.pattern}"
_IN_COMMAND = re.compile(rf"\\.|'[^']*'|\$'(?:\\.|[^'\\])*'|(?<![^\s;&|()])#.*|{_SUM}|\$?\(|{_FIELD_OR_END}")
_IN_QUOTES = re.compile(rf"\\.|{_SUM}|\$\(|{_FIELD_OR_END}")


def field_in_quotes(line: str) -> str:
    """The first field within quotes or arithmetic; empty if there is none.

    A command within quotes, "$(tool FIELD)", is a line of its own; what spans lines, no template can hold.
    """
    ends = [""]  # what ends each thing that is open, the innermost last
    at = 0
    while found := (_IN_QUOTES if ends[-1] == '"' else _IN_COMMAND).search(line, at):
        part, at = found[0], found.end()
        field = _FIELD.search(part)
        if field and not part.startswith("#") and (ends[-1] == '"' or part != field[0]):
            return field[0]
        if part == ends[-1]:
            ends.pop()
        elif part in ('"', "`"):
            ends.append(part)
        elif part in ("(", "$("):
            ends.append(")")
    return ""
