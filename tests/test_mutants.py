"""What `make mutants` changes, and that a change takes effect in what is imported already."""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from forked import _statements, changed_functions, compiled
from mutations import mutations


def module(text: str) -> str:
    return textwrap.dedent(text).strip()


def test_every_change_of_a_module():
    source = module("""
        def f(a: int | None, b: bool = False) -> int | float:
            if a < 2:
                raise ValueError(f"{a + 1} is too small")
            g("text")
            return a if not b else -a
    """)
    changed = {ast.unparse(change.tree()) for change in mutations(source)}
    parts = ["b: bool=False", "if a < 2:", "g('text')", "return a if not b else -a"]
    new = {
        parts[0]: ["b: bool=True"],
        parts[1]: ["if a <= 2:", "if a < 3:", "if True:", "if False:"],
        parts[2]: ["pass"],
        parts[3]: [
            "return None", "return a if True else -a", "return a if False else -a", "return a if bool(b) else -a",
            "return a if not b else +a",
        ],
    }  # fmt: skip
    whole = ast.unparse(ast.parse(source))
    assert changed == {whole.replace(old, text) for old, texts in new.items() for text in texts}
    assert [change.line for change in mutations(source, {4})] == [4]


def test_changed_functions_take_the_place_of_those_that_are_imported():
    source = module("""
        def outer(n):
            def inner(m):
                return n + m
            return inner

        class Limit:
            most = 5

            def exceeded(self, value, most=3):
                return value > most
    """)
    path = Path("module.py")
    old = compiled(ast.parse(source), path)
    found = {}
    exec(old, found)
    for change in mutations(source):
        pairs = changed_functions(old, compiled(change.tree(), path))
        if change.line in (7, 9):
            assert pairs is None  # The number is read when the module is imported.
            continue
        for function in (found["outer"], found["Limit"].exceeded):
            for before, after in pairs:
                if function.__code__ == before:
                    function.__code__ = after
        if change.what == "Add → Sub":
            assert found["outer"](5)(2) == 3
        if change.what == "Gt → GtE":
            assert found["Limit"]().exceeded(3)
        for function in (found["outer"], found["Limit"].exceeded):
            for before, after in pairs:
                if function.__code__ == after:
                    function.__code__ = before
    assert changed_functions(old, compiled(ast.parse(source), path)) == []


def test_lines_of_statements(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "a = 1\n\ndef f(b,\n      c=2):\n    if (b and\n            c):\n        return [\n            b]\n"
    )
    assert _statements(path) == [(1, 1, False), (3, 4, False), (5, 6, True), (7, 8, True)]
