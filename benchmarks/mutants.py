"""Change the code in small ways, one at a time, and see whether its tests notice: `make mutants`.

A change that no test notices survives: either a test is missing, or the change makes no difference. Without arguments,
the files of `src/` that differ from `main` are changed, only in the lines that differ.

    python benchmarks/mutants.py src/reprune/core/digest.py --tests tests/core/test_digest.py
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Mult, ast.USub: ast.UAdd,
}  # fmt: skip
"""What an operator becomes."""
NUMBERS = (bool, int, float)


def mutants(source: str, lines: set[int] | None) -> Iterator[tuple[int, str, Callable[[], str]]]:
    """Line, description and maker of every changed form of a module; of these lines only, if they are given."""
    tree = ast.parse(source)
    spared = {id(node) for part in _spared(tree) for node in ast.walk(part)}
    for number, node in enumerate(ast.walk(tree)):
        line = getattr(node, "lineno", None)
        if line is None or (lines is not None and line not in lines) or id(node) in spared:
            continue
        for what, change in _changes(node):
            yield line, what, partial(_changed, tree, number, change)


def _changed(tree: ast.Module, number: int, change: Callable[[Any], None]) -> str:
    changed = copy.deepcopy(tree)
    change(next(found for place, found in enumerate(ast.walk(changed)) if place == number))
    return ast.unparse(ast.fix_missing_locations(changed))


def _spared(tree: ast.Module) -> Iterator[ast.AST]:
    """What tests of behaviour do not look at: texts, annotations, decorators, what an error says, `zip`'s own check."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and not isinstance(node.value, NUMBERS)):
            yield node
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            yield node.annotation
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from node.decorator_list
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield node.exc
        if isinstance(node, ast.keyword) and node.arg == "strict":
            yield node
        # A name of a type: `Axis = int | Extent`. Its operands are names and subscripts only.
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and _names_types(node):
            yield node


def _names_types(node: ast.AST) -> bool:
    """Whether all that is combined by `|` is a class, a subscripted one, or None."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.BitOr) and _names_types(node.left) and _names_types(node.right)
    if isinstance(node, ast.Subscript):
        return _names_types(node.value)
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in ("int", "float", "str", "bool", "dict", "list", "tuple") or name[:1].isupper()


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], None]]]:
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp, ast.UnaryOp)) and type(node.op) in SWAPS:
        new = SWAPS[type(node.op)]
        yield f"{type(node.op).__name__} → {new.__name__}", lambda found: setattr(found, "op", new())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not x → bool(x)", lambda found: _become(found, ast.Call(ast.Name("bool"), [found.operand], []))
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        new = SWAPS[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} → {new.__name__}", lambda found: found.ops.__setitem__(0, new())
    if isinstance(node, ast.Constant) and isinstance(node.value, NUMBERS):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield f"{node.value!r} → {value!r}", lambda found: setattr(found, "value", value)
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield "return None", lambda found: setattr(found, "value", ast.Constant(None))
    if isinstance(node, (ast.If, ast.IfExp)):
        yield "if True", lambda found: setattr(found, "test", ast.Constant(True))
        yield "if False", lambda found: setattr(found, "test", ast.Constant(False))
    if isinstance(node, (ast.Expr, ast.AugAssign)) and not isinstance(getattr(node, "value", None), ast.Constant):
        yield "left out", lambda found: _become(found, ast.Pass())


def _become(node: ast.AST, other: ast.AST) -> None:
    fields = dict(other.__dict__)
    node.__class__ = type(other)
    for name in list(node.__dict__):
        if name not in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
            del node.__dict__[name]
    node.__dict__.update(fields)


def changed_lines() -> dict[Path, set[int]]:
    """Files of `src/` that differ from `main`, and their lines that do."""
    diff = subprocess.run(
        ["git", "diff", "-U0", "main", "--", "src"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found: dict[Path, set[int]] = {}
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            lines = found.setdefault(ROOT / line[6:], set())
        elif match := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line):
            start, count = int(match[1]), int(match[2] or 1)
            lines.update(range(start, start + count))
    return {path: lines for path, lines in found.items() if path.suffix == ".py" and path.exists()}


def tests_of(path: Path) -> list[str]:
    """The test file that is named after a module, in the folder that mirrors its room or above, or else that folder."""
    room = ROOT / "tests" / path.relative_to(ROOT / "src" / "reprune").parent
    rooms = [folder for folder in (room, *room.parents) if folder.exists() and folder.is_relative_to(ROOT / "tests")]
    named = (folder / f"test_{path.stem}.py" for folder in rooms)
    return [str(next((file for file in named if file.exists()), rooms[0]))]


def survives(path: Path, source: str, tests: list[str], timeout: float | None) -> bool:
    """Whether the tests pass with this source in the place of a file, in a copy of the package."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src", Path(folder) / "src", ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / path.relative_to(ROOT)).write_text(source)
        environment = {**os.environ, "PYTHONPATH": f"{folder}/src", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        try:
            run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return False  # A loop that does not end is noticed.
        return run.returncode == 0


def patience(path: Path, tests: list[str]) -> float:
    """Seconds after which a change counts as noticed: many times what the tests take.

    Raises:
        SystemExit: When the tests fail without any change, so that they would notice everything.
    """
    start = time.monotonic()
    if not survives(path, path.read_text(), tests, None):
        raise SystemExit(f"{' '.join(tests)}: fails without any change")
    return 30 + 5 * (time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="what to change; by default what differs from main")
    parser.add_argument("--tests", nargs="+", help="what should notice; by default the tests of the file's room")
    parser.add_argument("--sample", type=int, help="change this many places, chosen at random, in place of all")
    given = parser.parse_args()
    chosen = {path.resolve(): None for path in given.files} or changed_lines()
    tried = [(path, *found) for path, lines in chosen.items() for found in mutants(path.read_text(), lines)]
    if given.sample is not None and given.sample < len(tried):
        tried = sorted(random.Random(0).sample(tried, given.sample), key=lambda found: (found[0], found[1]))
    waits: dict[tuple[str, ...], float] = {}
    left = 0
    for path, line, what, make in tried:
        tests = given.tests or tests_of(path)
        if tuple(tests) not in waits:
            waits[tuple(tests)] = patience(path, tests)
        if survives(path, make(), tests, waits[tuple(tests)]):
            left += 1
            print(f"survived: {path.relative_to(ROOT)}:{line}: {what}", flush=True)
    killed = len(tried) - left
    print(f"{killed} of {len(tried)} noticed" + (f" ({killed / len(tried):.0%})" if tried else ""))


if __name__ == "__main__":
    main()
