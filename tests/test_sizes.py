"""Files and functions stay as long as a reader can hold: what outgrows this wants to be two things."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(p for folder in ("src", "benchmarks", "notebooks") for p in (ROOT / folder).rglob("*.py"))
MOST_LINES, MOST_OF_A_FUNCTION = 250, 40
DATA = {"src/paft/data/demo.py"}
"""The embedded rows' words: a table, however long."""


def test_no_file_is_longer_than_250_lines():
    sizes = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in FILES}
    assert sizes.keys() >= DATA
    assert {name: size for name, size in sizes.items() if size > MOST_LINES and name not in DATA} == {}


def test_no_function_is_longer_than_40_lines():
    longest = {
        f"{p.relative_to(ROOT).as_posix()}:{node.lineno} {node.name}": size
        for p in FILES
        for node in ast.walk(ast.parse(p.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (size := lines_of(node))
    }
    assert len(longest) > 500
    assert {name: size for name, size in longest.items() if size > MOST_OF_A_FUNCTION} == {}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to the last line, without its docstring."""
    text = ast.get_docstring(function, clean=False)
    return (function.end_lineno or 0) - function.lineno + 1 - (text.count("\n") + 1 if text else 0)
