"""Processors: finding one, checking it, and reducing whatever it returns or raises to plain data."""

import asyncio
import copy
import datetime as dt
import decimal
import enum
import math
import pickle
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from poqueue import ProcessingTask, TaskQueue
from poqueue.errors import ProcessorError
from poqueue.payload import refreeze, thaw_result
from poqueue.task import Lease, PlainSuccess, Report, TaskResult
from workers.processing import (
    MAX_MESSAGE_CHARS,
    MAX_RESULT_BYTES,
    MAX_TRACEBACK_CHARS,
    GiveUp,
    Processor,
    ProcessorSpec,
    RetryLater,
    Terminated,
    WorkerContext,
    check_importable,
    load_target,
    run_attempt,
)


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Writes a module and gives its folder."""
    before = set(sys.modules)

    def write(text: str, name: str = "my_site") -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return str(tmp_path)

    path = list(sys.path)
    yield write
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def load(target: Any, folder: str | None = None) -> Any:
    return load_target(ProcessorSpec(target, app_dir=folder))


# ── finding ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["", "x", "mod:", ":func", "mod:func:x", " : ", "mod.func", "mod: "])
def test_a_path_that_is_none_says_how_one_is_written(path: str) -> None:
    with pytest.raises(ProcessorError, match="module:attribute"):
        load(path)


@pytest.mark.parametrize(
    "path",
    [".mod:process", "mod..x:process", "a b:process", "mod:pro cess", "mod/x.py:process", "\0:process", "é\ud800:x"],
)
def test_odd_paths_are_processor_errors(path: str) -> None:
    with pytest.raises(ProcessorError):
        load(path)


def test_an_unknown_module_is_named() -> None:
    with pytest.raises(ProcessorError, match=r"no module 'no_such_site'.*--app-dir"):
        load("no_such_site.orders:process")


def test_a_module_that_misses_another_one_names_that(module: Callable[[str], str]) -> None:
    folder = module("import no_such_library")

    with pytest.raises(ProcessorError, match=r"importing my_site failed: .*no_such_library"):
        load("my_site:process", folder)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise RuntimeError('no display')", "no display"), ("import sys; sys.exit(3)", "exit 3"), ("def (:", "SyntaxError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"), ("raise GeneratorExit", "GeneratorExit"),
        ("class E(BaseException): pass\nraise E('own')", "own"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E"),
    ],
)  # fmt: skip
def test_a_module_may_raise_anything_while_it_is_imported(text: str, told: str, module: Callable[[str], str]) -> None:
    folder = module(text)

    with pytest.raises(ProcessorError, match=told):
        load("my_site:process", folder)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("", "ValueError"),
        ("url is missing\n  for more see the manual\n", "ValueError: url is missing …"),
        ("\n\n  url is missing\n", "ValueError: url is missing"),
        ("\nurl is missing\n\nfor more see the manual", "ValueError: url is missing …"),
    ],
)
def test_of_a_message_of_several_lines_the_first_is_told(
    message: str, told: str, tmp_path: Path, module: Callable[[str], str]
) -> None:
    folder = module(f"raise ValueError({message!r})")

    with pytest.raises(ProcessorError) as refused:
        load("my_site:process", folder)

    assert str(refused.value).endswith(f" importing my_site failed: {told} ({tmp_path / 'my_site.py'}, line 1)")


@pytest.mark.parametrize(("text", "line"), [("x = 1\ndef f(:\n", 2), ("if 1:\nx = 1\n", 2), ("x = (\n", 1)])
def test_a_module_that_is_no_python_is_told_with_its_place(
    text: str, line: int, tmp_path: Path, module: Callable[[str], str]
) -> None:
    folder = module(text)

    with pytest.raises(ProcessorError) as told:
        load("my_site:process", folder)

    assert str(told.value).endswith(f" ({tmp_path / 'my_site.py'}, line {line})")


def test_an_unknown_attribute_is_answered_with_the_nearest(module: Callable[[str], str]) -> None:
    folder = module("def process_order(po): ...")

    with pytest.raises(ProcessorError, match=r"did you mean .*process_order"):
        load("my_site:proces_order", folder)


def test_attributes_of_attributes_are_found(module: Callable[[str], str]) -> None:
    folder = module("class Sites:\n    @staticmethod\n    def first(po): return 1")

    assert load("my_site:Sites.first", folder)({}) == 1


def test_a_method_is_refused_that_would_get_the_po_as_its_self(module: Callable[[str], str]) -> None:
    text = "class Session:\n    def process(self, po): ...\n    @classmethod\n    def first(cls, po): return 1\n"
    folder = module(f"{text}class Other(Session): ...\nprocess = Session.process")

    session = load("my_site:Session", folder)
    named = {"my_site:Session.process": "Session", "my_site:process": "Session", "my_site:Other.process": "Other"}
    for target, owner in [(session.process, "Session"), *named.items()]:
        with pytest.raises(ProcessorError, match=rf"is a method.*; name its class, my_site:{owner}, or"):
            load(target, folder)
    for target in (session.first, "my_site:Session.first", "my_site:Other.first"):
        assert load(target, folder)({}) == 1


def test_a_method_of_a_class_without_process_is_refused_and_its_class_not_advised(module: Callable[[str], str]) -> None:
    folder = module("class Portal:\n    def fetch(self, po): ...")

    with pytest.raises(ProcessorError, match=r"is a method.* its self; make it a static method$"):
        load("my_site:Portal.fetch", folder)


def test_a_function_in_a_class_that_is_but_a_namespace_is_a_function(module: Callable[[str], str]) -> None:
    folder = module(
        """
        class Sites:
            def first(po): return 1
            def second(po, context): return 2
        class Alone:
            def process(po): return 3
        """
    )

    assert load("my_site:Sites.first", folder)({}) == 1
    assert load("my_site:Sites.second", folder)({}, None) == 2
    assert load("my_site:Alone.process", folder)({}) == 3


def test_a_module_whose_attributes_raise_is_a_processor_error(module: Callable[[str], str]) -> None:
    folder = module("def __getattr__(name): raise RuntimeError('lazy')")

    with pytest.raises(ProcessorError, match="lazy"):
        load("my_site:process", folder)


def test_what_has_the_name_of_something_else_is_refused_where_it_must_be_pickled(module: Callable[[str], str]) -> None:
    folder = module(
        """
        import functools

        def _process(po): return {}
        process = functools.wraps(_process)(lambda po: {})
        half = functools.partial(_process)
        """
    )
    process, half = load("my_site:process", folder), load("my_site:half", folder)

    for start_method in ("spawn", "forkserver"):
        with pytest.raises(ProcessorError, match=r"my_site:_process: .*name it as module:attribute"):
            check_importable(process, start_method)
    check_importable(process, "fork")
    check_importable(half, "spawn")


def test_lambdas_local_functions_and_classes_are_refused() -> None:
    def local(po: Any) -> None: ...

    class Local:
        def process(self, po: Any) -> None: ...

    for target in (lambda po: None, local, Local, Local().process):
        with pytest.raises(ProcessorError, match="top level"):
            check_importable(target)


# ── checking ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "parameters",
    [
        "po",
        "po, context",
        "po, context=None",
        "*args",
        "po, *rest",
        "po, /",
        "po, *, x=1",
        "po, **more",
        "po, x=1, y=2",
    ],
)
def test_functions_that_fit(parameters: str, module: Callable[[str], str]) -> None:
    folder = module(f"def process({parameters}): return {{'ran': True}}")

    report = attempt(load("my_site:process", folder))

    assert data_of(report) == {"ran": True}


@pytest.mark.parametrize("parameters", ["", "po, context, more", "*, po", "po, *, more", "**more"])
def test_functions_that_do_not_fit(parameters: str, module: Callable[[str], str]) -> None:
    folder = module(f"def process({parameters}): ...")

    with pytest.raises(ProcessorError, match="must take"):
        load("my_site:process", folder)


@pytest.mark.parametrize(
    "text",
    [
        "async def process(po): ...", "async def process(po):\n    yield 1", "def process(po):\n    yield 1",
        "class process:\n    async def process(self, po): ...", "class process:\n    def process(self, po):\n        yield",
        "class P:\n    async def __call__(self, po): ...\nprocess = P()",
        "import functools\nasync def p(po): ...\nprocess = functools.partial(p)",
    ],
)  # fmt: skip
def test_async_functions_and_generators_are_refused(text: str, module: Callable[[str], str]) -> None:
    folder = module(text)

    with pytest.raises(ProcessorError, match="async"):
        load("my_site:process", folder)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("process = 7", "int"), ("process = None", "NoneType"), ("class process: ...", "needs a method process"),
        ("class process:\n    def __init__(self, url): ...\n    def process(self, po): ...", "without arguments"),
        ("class process:\n    def process(self): ...", "process must take"),
        ("class process:\n    def process(self, a, b, c): ...", "process must take"),
        ("class process:\n    def setup(self): ...\n    def process(self, po): ...", "setup must take"),
        ("class process:\n    def process(self, po): ...\n    def teardown(self, x): ...", "teardown must take"),
        ("import sys as process", "module"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(text: str, told: str, module: Callable[[str], str]) -> None:
    folder = module(text)

    with pytest.raises(ProcessorError, match=told):
        load("my_site:process", folder)


@pytest.mark.parametrize(
    "text",
    [
        "class process:\n    def process(self, po): return {'ran': True}",
        "class process:\n    def process(self, po, context): return {'ran': context.attempt == 1}",
        "class process:\n    @staticmethod\n    def process(po): return {'ran': True}",
        "class process:\n    @classmethod\n    def process(cls, po): return {'ran': True}",
        "class P:\n    def __call__(self, po): return {'ran': True}\nprocess = P()",
        "class P:\n    def process(self, po): return {'ran': True}\nprocess = P().process",
        "import functools\ndef p(x, po): return {'ran': x}\nprocess = functools.partial(p, True)",
    ],
)  # fmt: skip
def test_classes_and_callables_that_fit(text: str, module: Callable[[str], str]) -> None:
    folder = module(text)

    assert data_of(attempt(load("my_site:process", folder))) == {"ran": True}


DECORATORS = """
import functools

def any_arguments(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

def without_context(function):
    @functools.wraps(function)
    def wrapper(po):
        return function(po, None)
    return wrapper

def method_without_context(function):
    @functools.wraps(function)
    def wrapper(self, po):
        return function(self, po, None)
    return wrapper

def with_context(function):
    @functools.wraps(function)
    def wrapper(po, context):
        return function(po)
    return wrapper

def with_nothing(function):
    @functools.wraps(function)
    def wrapper():
        return function({})
    return wrapper

"""


@pytest.mark.parametrize(
    "text",
    [
        "@any_arguments\ndef process(po): return {'ran': True}",
        "@any_arguments\ndef process(po, context): return {'ran': context.attempt == 1}",
        "@without_context\ndef process(po, context): return {'ran': context is None}",
        "@with_context\ndef process(po): return {'ran': True}",
        "@any_arguments\n@without_context\ndef process(po, context): return {'ran': context is None}",
        "@any_arguments\n@any_arguments\ndef process(po): return {'ran': True}",
        "class process:\n    @any_arguments\n    def process(self, po): return {'ran': True}",
        "class process:\n    @method_without_context\n    def process(self, po, context): return {'ran': context is None}",
        "class P:\n    @any_arguments\n    def process(self, po): return {'ran': True}\nprocess = P().process",
    ],
)
def test_what_is_decorated_is_called_as_its_decorator_takes_it(text: str, module: Callable[[str], str]) -> None:
    folder = module(DECORATORS + text)

    assert data_of(attempt(load("my_site:process", folder))) == {"ran": True}


def test_a_decorator_that_does_not_fit_is_told(module: Callable[[str], str]) -> None:
    folder = module(DECORATORS + "@with_nothing\ndef process(po): ...")

    with pytest.raises(ProcessorError, match="must take"):
        load("my_site:process", folder)


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def attempt(target: Any, po: Any = None) -> Report:
    payload = pickle.dumps({"po_number": "A"} if po is None else po)
    lease = Lease("id-A", 7, 1, 4, 60.0, "A", payload)
    report = run_attempt(Processor(target), lease, WorkerContext("w1.1", Path("/tmp")))
    return report if isinstance(report, Report) else in_full(report)


def in_full(success: PlainSuccess) -> Report:
    """What a success in short says, which is what it stands for."""
    task_id, token, seconds, payload = success
    result = refreeze(payload)
    assert result[:3] == (True, seconds, None)
    return Report(task_id, token, seconds, result)


def returning(value: Any) -> Report:
    return attempt(lambda po: value)


def raising(error: BaseException) -> dict[str, Any]:
    def process(po: Any) -> NoReturn:
        raise error

    report = attempt(process)
    assert report.result is None and report.error is not None
    pickle.dumps(report)
    return report.error


def data_of(report: Report) -> dict[str, Any]:
    assert report.error is None, report.error
    return thaw_result(report.result.payload).data


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    """A str with a class of its own, as many libraries have."""


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (decimal.Decimal("1.10"), "1.10"), ({3, 1, 2}, [1, 2, 3]), (frozenset(), []), ((1, (2,)), [1, [2]]),
        (dt.date(2024, 5, 1), "2024-05-01"), (dt.datetime(2024, 5, 1, 2, 3), "2024-05-01T02:03:00"), (dt.time(1), "01:00:00"),
        (Path("a/b"), "a/b"), (Colour.RED, "red"), (Text("x"), "x"), (True, True), (None, None), (10**30, 10**30),
        ("\u2028 \x00 \x85 é", "\u2028 \x00 \x85 é"), ({1: "x", None: "y"}, {"1": "x", "None": "y"}),
    ],
)  # fmt: skip
def test_values_with_a_plain_form_are_kept(value: Any, kept: Any) -> None:
    assert data_of(returning({"x": value})) == {"x": kept}


class ReduceRaises:
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("no pickle")


class ReduceExits:
    def __reduce__(self) -> NoReturn:
        raise SystemExit(0)


class LoadExits:
    def __reduce__(self) -> Any:
        return sys.exit, (0,)


class AttributeRaises:
    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return object.__getattribute__(self, name)
        raise RuntimeError(name)


class AttributeExits:
    def __getattr__(self, name: str) -> Any:
        raise SystemExit(name)


class HostileRepr:
    def __repr__(self) -> str:
        raise SystemExit("repr")

    __str__ = __repr__


class HostileList(list[Any]):
    def __iter__(self) -> Any:
        raise RuntimeError("iter")


class HostileDict(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("items")

    keys = __iter__ = items  # type: ignore[assignment]


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


NOT_PLAIN: dict[str, Callable[[], Any]] = {
    "lambda": lambda: lambda: None, "generator": lambda: (n for n in ()), "lock": threading.Lock,
    "module": lambda: sys, "class": lambda: dict, "bytes": lambda: b"x", "object": object, "exception": lambda: ValueError("x"),
    "reduce raises": ReduceRaises, "reduce exits": ReduceExits, "load exits": LoadExits, "attribute raises": AttributeRaises,
    "attribute exits": AttributeExits, "hostile repr": HostileRepr, "nan": lambda: float("nan"), "inf": lambda: float("-inf"),
    "decimal nan": lambda: decimal.Decimal("NaN"), "decimal snan": lambda: decimal.Decimal("sNaN"), "surrogate": lambda: "\ud800",
    "cycle": _cycle, "deep": _deep, "same keys": lambda: {1: 0, "1": 0}, "odd key": lambda: {(1, 2): 0},
    "surrogate key": lambda: {"\ud800": 0}, "nan key": lambda: {float("nan"): 0} and {object(): 0},
    "long number": lambda: 10**5000, "long number in a dict": lambda: {"n": -(10**5000)}, "long key": lambda: {10**5000: 0},
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_values_without_a_plain_form_fail_the_attempt_and_name_the_place(name: str) -> None:
    report = returning({"x": [NOT_PLAIN[name]()]})

    assert report.result is None and report.error is not None
    assert report.error["error_type"] == "ResultNotSerializable", report.error
    assert "x" in report.error["message"]
    assert not report.give_up and report.retry_after_s is None


def test_a_record_of_ours_within_a_result_is_kept_by_its_fields() -> None:
    report = returning({"parts": [TaskResult(True, ["a.pdf"])]})

    assert report.result is not None
    told = {"success": True, "downloads": ["a.pdf"], "processing_time": 0.0, "error_message": None, "data": {}}
    assert thaw_result(report.result.payload).data == {"parts": [told]}


def test_an_open_file_has_no_plain_form() -> None:
    with open(__file__) as file:
        report = returning({"x": file})

    assert report.error is not None and report.error["error_type"] == "ResultNotSerializable"


@pytest.mark.parametrize("make", [HostileList, HostileDict])
def test_hostile_containers_end_as_a_failed_attempt_or_as_plain_data(make: Callable[[Any], Any]) -> None:
    report = returning({"x": make([("a", 1)])})

    assert (report.result is None) != (report.error is None)
    pickle.dumps(report)


@pytest.mark.parametrize("value", [7, "text", [], True, object(), (1, 2), {1}, dict, b""])
def test_other_results_than_the_three_kinds_are_refused(value: Any) -> None:
    error = returning(value).error

    assert error is not None and error["error_type"] == "ResultNotSerializable"
    assert "return a dict, a TaskResult or None" in error["message"]


def test_a_coroutine_that_a_function_returns_is_refused() -> None:
    coroutine = asyncio.sleep(0)
    report = returning(coroutine)
    coroutine.close()

    assert report.error is not None


def test_a_result_too_large_is_refused() -> None:
    report = returning({"x": "x" * (MAX_RESULT_BYTES + 1)})

    assert report.error is not None and report.error["error_type"] == "ResultTooLarge"
    assert len(pickle.dumps(report)) < 100_000


def test_a_result_just_small_enough_is_kept() -> None:
    assert len(data_of(returning({"x": "x" * (MAX_RESULT_BYTES - 1000)}))["x"]) == MAX_RESULT_BYTES - 1000


def test_a_task_result_is_taken_as_it_is() -> None:
    report = returning(TaskResult(False, ["a.pdf", Path("b.pdf")], 2.5, "no such order", {"x": decimal.Decimal("1.0")}))

    result = thaw_result(report.result.payload)
    assert result == TaskResult(False, ["a.pdf", "b.pdf"], 2.5, "no such order", {"x": "1.0"})
    assert (report.result.success, report.result.error_message) == (False, "no such order")


@pytest.mark.parametrize(
    "result",
    [
        TaskResult(True, None),  # type: ignore[arg-type]
        TaskResult(True, "a.pdf"),  # type: ignore[arg-type]
        TaskResult(True, processing_time="x"),  # type: ignore[arg-type]
        TaskResult(True, processing_time=1e300), TaskResult(True, processing_time=10**400),
        TaskResult(True, processing_time=float("nan")), TaskResult(True, processing_time=-1.0), TaskResult(1),  # type: ignore[arg-type]
        TaskResult(True, data=None),  # type: ignore[arg-type]
        TaskResult(True, data=[1]),  # type: ignore[arg-type]
        TaskResult(True, error_message=HostileRepr()),  # type: ignore[arg-type]
        TaskResult(True, error_message="\ud800"), TaskResult(True, error_message="x" * 10**7), TaskResult(HostileRepr()),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_task_results_with_wrong_fields_end_whole_or_as_a_failed_attempt(result: TaskResult) -> None:
    report = returning(result)

    pickle.dumps(report)
    if report.error is None:
        opened = thaw_result(report.result.payload)
        assert isinstance(opened.downloads, list) and isinstance(opened.data, dict) and opened.success is True
        assert 0 <= opened.processing_time < 60 and len(opened.error_message or "") <= MAX_MESSAGE_CHARS


def test_a_final_failure_is_one_whatever_its_message_is_made_of() -> None:
    """The name of a file may hold what is no Unicode."""
    report = returning(TaskResult(False, error_message="no file caf\udce9.pdf"))

    assert report.error is None
    assert (report.result.success, report.result.error_message) == (False, "no file caf\\udce9.pdf")
    assert thaw_result(report.result.payload).error_message == "no file caf\\udce9.pdf"


@pytest.mark.parametrize(
    ("given", "kept"), [(None, []), ([], []), ("a.pdf", ["a.pdf"]), (["a"], ["a"]), ({"a": 1}, [{"a": 1}])]
)
def test_downloads_of_a_dict_become_a_list(given: Any, kept: list[Any]) -> None:
    report = returning({"downloads": given, "x": 1})

    result = thaw_result(report.result.payload)
    assert (result.downloads, result.data) == (kept, {"x": 1})


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class TwoArguments(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} {b}")


class StrRaises(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class StrExits(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


class StrIsNoText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


@pytest.mark.parametrize(
    "error",
    [
        TwoArguments(1, 2), StrRaises(), StrExits(), StrIsNoText(), ValueError(lambda: None), ValueError(threading.Lock()),
        ValueError("\ud800"), ValueError(HostileRepr()), KeyError("x"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ExceptionGroup("several", [ValueError(1), TypeError(2)]), OSError(2, "none", "file\udcff"), StopIteration(7), RecursionError(),  # noqa: E501
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_any_exception_becomes_plain_data(error: BaseException) -> None:
    details = raising(error)

    assert details["error_type"] == type(error).__name__
    assert isinstance(details["message"], str) and isinstance(details["traceback"], str)
    (details["message"] + details["traceback"]).encode()


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(0),
        SystemExit("bye"),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseException("x"),
    ],
)
def test_exceptions_that_end_programs_are_failed_attempts(error: BaseException) -> None:
    assert raising(error)["error_type"] == type(error).__name__


def test_only_the_workers_own_end_passes_through() -> None:
    def process(po: Any) -> NoReturn:
        raise Terminated

    with pytest.raises(Terminated):
        attempt(process)


def test_long_messages_and_tracebacks_are_cut() -> None:
    details = raising(ValueError("x" * 10_000_000))

    assert len(details["message"]) == MAX_MESSAGE_CHARS
    assert len(details["traceback"]) <= MAX_TRACEBACK_CHARS


def test_endless_recursion_is_a_failed_attempt() -> None:
    def process(po: Any) -> Any:
        return process(po)

    report = attempt(process)

    assert report.error is not None and report.error["error_type"] == "RecursionError"


def test_causes_and_notes_are_told() -> None:
    def process(po: Any) -> NoReturn:
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            error = ValueError("the effect")
            error.add_note("the note")
            raise error from cause

    report = attempt(process)

    assert report.error is not None
    assert all(word in report.error["traceback"] for word in ("the cause", "the effect", "the note", "in process"))


def test_a_chain_of_causes_in_a_cycle_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    assert raising(first)["message"] == "first"


def test_give_up_says_never_again() -> None:
    def process(po: Any) -> NoReturn:
        raise GiveUp("there is no such order")

    report = attempt(process)

    assert report.give_up and report.error is not None and report.error["message"] == "there is no such order"


@pytest.mark.parametrize(
    ("after", "kept"), [(30, 30.0), (0, 0.0), (-5, 0.0), (0.5, 0.5), (decimal.Decimal("1.5"), 1.5), ("7", 7.0)]
)
def test_retry_later_names_the_delay(after: Any, kept: float) -> None:
    def process(po: Any) -> NoReturn:
        raise RetryLater("busy", after=after)

    report = attempt(process)

    assert report.retry_after_s == kept and not report.give_up


@pytest.mark.parametrize("after", [math.nan, math.inf, 1_764_000_000, None, "soon"])
def test_a_delay_that_is_none_is_a_failed_attempt_all_the_same(after: Any) -> None:
    def process(po: Any) -> NoReturn:
        raise RetryLater("busy", after=after)

    report = attempt(process)

    assert report.error is not None
    assert report.retry_after_s != 0.0, "not at once"
    failed_attempt_is_taken(report)


def test_a_delay_that_a_processor_sets_to_anything_is_a_failed_attempt_all_the_same() -> None:
    for after in (None, "soon", [], math.nan, -math.inf, 10**400):

        def process(po: Any, after: Any = after) -> NoReturn:
            error = RetryLater("busy", after=1)
            error.after = after
            if after is None:
                del error.after
            raise error

        report = attempt(process)

        assert report.error is not None and report.error["error_type"] == "RetryLater"
        failed_attempt_is_taken(report)


class Busy(RetryLater):
    def __init__(self, code: int) -> None:
        super().__init__(f"busy: {code}", after=3)


@pytest.mark.parametrize("error", [RetryLater("busy", after=7), RetryLater(after=7), Busy(503)])
def test_retry_later_comes_whole_out_of_a_pool(error: RetryLater) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))

        assert type(again) is type(error) and str(again) == str(error) and again.after == error.after


def failed_attempt_is_taken(report: Report) -> None:
    queue = TaskQueue(max_retry_delay=60.0)
    queue.add_task(ProcessingTask(report.task_id, {"po_number": "A"}))
    lease = queue.exchange("w").leases[0]
    queue.exchange("w", [report._replace(token=lease.token)], limit=0)
    assert queue.get_queue_status()["retry_tasks"] == 1


def test_data_that_cannot_be_opened_are_a_failed_attempt_that_says_so() -> None:
    for payload in (b"", b"junk", pickle.dumps(LoadExits()), b"\x80\x05cno_such_module\nx\n."):
        lease = Lease("id", 1, 1, 1, 60.0, "A", payload)
        report = run_attempt(Processor(lambda po: {}), lease, WorkerContext("w", Path("/tmp")))
        assert (
            isinstance(report, Report)
            and report.error is not None
            and report.error["error_type"] in ("TaskDataError", "SystemExit")
        )


def test_what_a_processor_does_to_its_po_changes_nothing_else() -> None:
    po = {"po_number": "A", "rows": [{"x": 1}]}

    attempt(lambda given: given["rows"].clear(), po)

    assert po["rows"] == [{"x": 1}]


def test_the_context_says_which_attempt_this_is() -> None:
    seen: list[Any] = []

    def process(po: Any, context: WorkerContext) -> None:
        seen.append((context.po_number, context.task_id, context.attempt, context.max_attempts, context.worker_id))

    attempt(process)

    assert seen == [("A", "id-A", 1, 4, "w1.1")]


def test_a_context_that_is_given_to_a_pool_owns_nothing_there_and_its_copy_here_does() -> None:
    named: list[Any] = []
    context = WorkerContext(
        "w1.1", "/tmp", {"a": "b"}, "A", "id-A", 2, 4, owner=lambda pid, path: named.append((pid, path))
    )

    there = pickle.loads(pickle.dumps(context))
    there.own(pid=1)
    copy.copy(context).own(pid=2)

    assert (there.worker_id, there.output_dir, there.options) == ("w1.1", Path("/tmp"), {"a": "b"})
    assert (there.po_number, there.task_id, there.attempt, there.max_attempts) == ("A", "id-A", 2, 4)
    assert named == [(2, None)]
