"""Whether a function or class can be a processor: what it is, and what it takes."""

import sys
from types import FunctionType, MethodType

from poqueue.errors import ProcessorError
from poqueue.hints import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # else where it is used: to import it takes a tenth of a start
    import inspect

_HAS_REST = 0x4  # inspect.CO_VARARGS
_NOT_PLAIN = 0x20 | 0x80 | 0x200  # of a generator, a coroutine, an asynchronous generator
_HIDDEN = (ValueError, TypeError, RecursionError)  # the last of who has whatever attribute is asked for


def check_fit(target: Any, name: str) -> None:
    """A function of (po) or (po, context), or a class with such a method and a fitting setup and teardown.

    Raises:
        ProcessorError: it is none; the text says what is wrong.
    """
    what = f"processor {name!r}"
    if isinstance(target, type):
        _check_class_fits(target, what)
        return
    if not callable(target):
        raise ProcessorError(f"{what} is a {type(target).__name__}; a function or a class is needed")
    _refuse_method(target, name)
    _refuse_async(target, what)
    _check_takes(target, 1, 2, f"{what}: the function must take (po) or (po, context)")


def _check_class_fits(target: Any, what: str) -> None:
    if not callable(getattr(target, "process", None)):
        raise ProcessorError(f"{what}: the class needs a method process(self, po) or process(self, po, context)")
    _check_takes(
        target, 0, 0, f"{what}: the class must be constructed without arguments; open sessions in setup(context)"
    )
    _refuse_async(target.process, what)
    as_written = next((vars(kind)["process"] for kind in target.__mro__ if "process" in vars(kind)), None)
    itself = 0 if isinstance(as_written, staticmethod | classmethod) else 1
    what_it_takes = f"{what}: process must take (self, po) or (self, po, context)"
    _check_takes(target.process, 1 + itself, 2 + itself, what_it_takes)
    if callable(getattr(target, "setup", None)):
        _check_takes(target.setup, 2, 2, f"{what}: setup must take (self, context)")
    if callable(getattr(target, "teardown", None)):
        _check_takes(target.teardown, 1, 1, f"{what}: teardown must take (self)")


class _Positional(NamedTuple):
    """What a function takes by position."""

    names: tuple[str, ...]
    required: int
    has_rest: bool


def _positional(function: Any) -> _Positional | None:
    """Of a plain function or method; None of anything else, which inspect knows: to import that takes a tenth of a start."""
    bound = 1 if type(function) is MethodType else 0
    plain_one = function.__func__ if bound else function
    if type(plain_one) is not FunctionType or plain_one.__dict__:
        return None  # one that was wrapped says so there
    code = plain_one.__code__
    if code.co_kwonlyargcount or code.co_flags & _NOT_PLAIN or code.co_argcount < bound:
        return None
    required = max(0, code.co_argcount - len(plain_one.__defaults__ or ()) - bound)
    return _Positional(code.co_varnames[bound : code.co_argcount], required, bool(code.co_flags & _HAS_REST))


def _refuse_method(function: Any, name: str) -> None:
    """Of a class, and not of an instance: it is a function like others, and would take the PO for its `self`.

    One in a class that is but a namespace is a function indeed.
    """
    if type(function) is not FunctionType:
        return
    names = (name, f"{function.__module__}:{function.__qualname__}")  # that may be another name for it
    owner, owner_name = next(filter(None, (_owner(function, one) for one in names)), (None, ""))
    if owner is None:
        return
    has_process = callable(getattr(owner, "process", None))
    takes = function.__code__.co_varnames[: function.__code__.co_argcount]
    if takes[:1] not in (("self",), ("cls",)) and (len(takes) == 1 or not has_process):
        return
    way = f"name its class, {owner_name}, or " if has_process else ""
    raise ProcessorError(
        f"processor {name!r} is a method, and would get the PO as its self; {way}make it a static method"
    )


def _owner(function: Any, name: str) -> tuple[type, str] | None:
    """The class that has the function by this name, inherited or not, and how that is written."""
    module_name, _, attribute = name.partition(":")
    *path, last = attribute.split(".")
    owner: Any = sys.modules.get(module_name)
    for part in path:
        owner = getattr(owner, "__dict__", {}).get(part)
    if not isinstance(owner, type):
        return None
    has_it = next((vars(kind)[last] for kind in owner.__mro__ if last in vars(kind)), None) is function
    return (owner, f"{module_name}:{'.'.join(path)}") if has_it else None  # a static method is another there


def _refuse_async(function: Any, what: str) -> None:
    if _positional(function) is not None:
        return
    import inspect

    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    if any(is_kind(one) for is_kind in kinds for one in (function, type(function).__call__)):
        raise ProcessorError(
            f"{what} is an async function or a generator; a plain function is needed (asyncio.run inside it)"
        )


def _check_takes(function: Any, least: int, most: int, message: str) -> None:
    """The function can be called with `least` or with `most` positional arguments."""
    found = _positional(function)
    if found is not None and found.required <= most and (found.has_rest or len(found.names) >= least):
        return
    try:
        signature = _signature(function)
    except _HIDDEN:
        return  # built-ins may hide theirs; they are given the benefit of the doubt
    for count in range(most, least - 1, -1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return
    raise ProcessorError(f"{message}; it takes {signature}")


def positional_count(function: Any) -> int:
    """How many arguments a processing function is to be called with: 1, the PO, or 2, its context as well."""
    found = _positional(function) or _positional_by_inspect(function)
    if found is None:
        return 1
    named_context = len(found.names) >= 2 and found.names[1] == "context"
    return 2 if found.required >= 2 or named_context or found.has_rest else 1


def _positional_by_inspect(function: Any) -> _Positional | None:
    try:
        parameters = _signature(function).parameters.values()
    except _HIDDEN:
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    has_rest = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return _Positional(tuple(p.name for p in positional), sum(p.default is p.empty for p in positional), has_rest)


def _signature(function: Any) -> "inspect.Signature":
    """Of what is called; a wrapper that takes any arguments hands them on, and takes what the wrapped one does."""
    import inspect

    wrapped = getattr(function, "__wrapped__", None)
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:
        if wrapped is None:
            raise
    else:
        takes_any = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
        if wrapped is None or not takes_any:
            return signature
    return _signature(MethodType(wrapped, function.__self__) if type(function) is MethodType else wrapped)
