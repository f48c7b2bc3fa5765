"""A configuration file: YAML of keys and values, read within limits, with the line of each key."""

import stat
from pathlib import Path
from typing import Any

from poqueue.errors import ConfigError
from workers.safe_text import quoted, safe_text

MAX_FILE_BYTES = 1_000_000  # the YAML reader takes seconds for a megabyte; a configuration is a few kilobytes
MAX_ALIASES = 100
MAX_DEPTH = 50


def read_config_file(path: Path) -> dict[str, tuple[object, int]]:
    """Keys with their values and lines: text, None, a list of text, or a mapping of text to text.

    Nothing is constructed: `no`, `012`, `1e3` and `12:30` reach the reader of the key as they were written, not as what
    YAML 1.1 makes of them, and no tag can ask for an object.

    Raises:
        ConfigError: unreadable, too large, not YAML, or not made of keys; the text says where.
    """
    shown = safe_text(str(path))
    return _read_yaml(_read_text(path, shown), shown)


def _read_text(path: Path, shown: str) -> str:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"configuration is a directory, not a file: {shown}")
        if not stat.S_ISREG(mode):  # reading a FIFO would wait for ever
            raise ConfigError(f"configuration is not a regular file: {shown}")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"configuration not found: {shown}") from None
    except OSError as error:
        raise ConfigError(f"configuration cannot be read: {shown}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"configuration is larger than {MAX_FILE_BYTES} bytes: {shown}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration is not UTF-8 at byte {error.start}: {shown}") from None


def _read_yaml(text: str, shown: str) -> dict[str, tuple[object, int]]:
    import yaml  # not needed by a worker, nor without a file

    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader), shown)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark else shown
        hint = "; indent with blanks, not tabs" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{place}: not valid YAML: {safe_text(str(error.problem), 200)}{hint}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{shown}:{line}: character {quoted(text[error.position])} is not allowed in YAML") from None
    if root is None or _is_null(root):
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{shown}:{_line(root)}: a configuration is made of lines 'key: value'")
    return {key: (_plain(value, shown, key), line) for key, (value, line) in _entries(root, shown).items()}


def _check_events(events: Any, shown: str) -> None:
    """Refuse what could make reading it dear or dangerous, before any of it is read."""
    import yaml

    depth = aliases = documents = 0
    for event in events:
        line = event.start_mark.line + 1
        documents += isinstance(event, yaml.DocumentStartEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if documents > 1:
            raise ConfigError(f"{shown}:{line}: a second document begins here; a configuration has one")
        if aliases > MAX_ALIASES:
            raise ConfigError(f"{shown}:{line}: too many aliases (limit {MAX_ALIASES})")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{shown}:{line}: nested too deep (limit {MAX_DEPTH})")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(f"{shown}:{line}: tag {quoted(tag)} is not allowed; write a plain value")


def _entries(mapping: Any, shown: str) -> dict[str, tuple[Any, int]]:
    """The nodes of a mapping by key, with the line of the key; YAML itself would let the last of two equal keys win."""
    found: dict[str, tuple[Any, int]] = {}
    for key, value in mapping.value:
        if not isinstance(key.value, str):
            raise ConfigError(f"{shown}:{_line(key)}: a key must be a name, not a list or a mapping")
        if key.value in found:
            lines = f"{found[key.value][1]} and {_line(key)}"
            raise ConfigError(f"{shown}:{_line(key)}: duplicate key {safe_text(key.value, 80)}, lines {lines}")
        found[key.value] = (value, _line(key))
    return found


def _plain(node: Any, shown: str, key: str) -> object:
    """Text, None, a list of text, or a mapping of text to text; the deepest that any setting is."""
    if isinstance(node.value, str):
        return _scalar(node, shown, key)
    if node.id == "sequence":
        return [_scalar(item, shown, key) for item in node.value]
    return {name: _scalar(value, shown, f"{key}.{name}") for name, (value, _) in _entries(node, shown).items()}


def _scalar(node: Any, shown: str, key: str) -> str | None:
    if not isinstance(node.value, str):
        raise ConfigError(f"{shown}:{_line(node)}: {safe_text(key, 80)} must be text, not a list or a mapping")
    return None if _is_null(node) else node.value


def _is_null(node: Any) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
