"""What modules need of typing while they are loaded, without typing itself: to import that takes a fortieth of a program's
time to its first result, and that twice, one after the other, in the program and in the fork server. For modules that
every process loads; type checkers see the real names.
"""

import os
import sys
from collections import namedtuple

TYPE_CHECKING = False
StrPath = str | os.PathLike[str]  # inside, paths are text, for the same reason: pathlib takes even longer

if TYPE_CHECKING or sys.version_info >= (3, 14):  # from there on the body of a class tells no annotations
    from typing import Any, ClassVar, Final, NamedTuple, NoReturn, Protocol
else:
    Any = Final = NoReturn = Protocol = object
    ClassVar = tuple

    class _TupleMaker(type):
        def __new__(cls, name, bases, body):
            fields = body["__annotations__"]
            defaults = [body[field] for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            for key in body.keys() - fields.keys():
                setattr(made, key, body[key])
            return made

    NamedTuple = type.__new__(_TupleMaker, "NamedTuple", (), {})

__all__ = ["TYPE_CHECKING", "Any", "ClassVar", "Final", "NamedTuple", "NoReturn", "Protocol", "StrPath"]
