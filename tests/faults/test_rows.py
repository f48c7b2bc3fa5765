"""Every row of the tables of faults, bad inputs and threats has a test that is there, or a line that says why not."""

import ast
import functools
from pathlib import Path

import pytest

from tests.faults.rows import NAMES, ROWS

TESTS = Path(__file__).resolve().parents[1]


@functools.cache
def names_in(file: str) -> dict[str, set[str]]:
    """Names of a file's tests, each with what its parameters are made of, as far as that stands in the file as text."""
    path = TESTS / file
    if not path.is_file():
        return {}
    module = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        target.id: _values(node.value, {})
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    functions = [
        node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    return {one.name: {text for mark in one.decorator_list for text in _values(mark, constants)} for one in functions}


def _values(node: ast.AST, constants: dict[str, set[str]]) -> set[str]:
    found = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Constant):
            found.add(str(child.value))
        elif isinstance(child, ast.Name):
            found |= constants.get(child.id, set())
        elif isinstance(child, ast.List) and all(isinstance(item, ast.Constant) for item in child.elts):
            found.add(" ".join(str(item.value) for item in child.elts if isinstance(item, ast.Constant)))
    return found


def fault_of(proof: str) -> str:
    """What is wrong with the name of a test; nothing if it is there."""
    file, _, named = proof.partition("::")
    test, _, beginning = named.partition("[")
    tests = names_in(file)
    if not tests:
        return f"there are no tests in tests/{file}"
    if test not in tests:
        return f"tests/{file} has no {test}"
    first = beginning.split("-")[0] if beginning and beginning not in tests[test] else beginning
    if beginning and first not in tests[test]:
        return f"{test} in tests/{file} is not tried with {beginning}"
    return ""


def test_every_row_is_there() -> None:
    assert list(ROWS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_tests_that_are_there_or_a_reason(name: str) -> None:
    row = ROWS[name]

    faults = [fault for proof in row.proofs if (fault := fault_of(proof))]
    assert not faults, f"{name}: {'; '.join(faults)}"
    assert bool(row.proofs) != bool(row.why_not), f"{name}: either tests or a reason"
    assert len(set(row.proofs)) == len(row.proofs)


@pytest.mark.parametrize(
    ("proof", "fault"),
    [
        ("faults/test_nowhere.py::test_x", "there are no tests in"),
        ("faults/test_rows.py::test_nothing", "has no test_nothing"),
        ("faults/test_rows.py::test_a_name_that_is_not_there_is_found[no such thing", "is not tried with"),
        ("faults/test_rows.py::test_every_row_is_there", ""),
        ("faults/test_rows.py::test_a_name_that_is_not_there_is_found[faults/test_nowhere.py::test_x", ""),
    ],
)
def test_a_name_that_is_not_there_is_found(proof: str, fault: str) -> None:
    found = fault_of(proof)

    assert fault in found and bool(fault) == bool(found)
