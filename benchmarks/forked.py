"""Try changes of code in processes that are forked from one which has imported everything, for `mutants.py`."""

from __future__ import annotations

import ast
import gc
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import CodeType, FunctionType

import coverage
import pytest
from mutations import Mutation

SURVIVED, NOTICED, AT_IMPORT, SAME = range(20, 24)
"""How the process of a change ends."""


class Hunt:
    """A plugin of pytest that changes the code again and again, in place of running the tests once."""

    def __init__(self, root: Path, tried: list[tuple[Path, Mutation]], seconds: float) -> None:
        self._root = root
        self._tried = tried
        self._seconds = seconds
        self._running: dict[int, tuple[float, Path, Mutation, list[str]]] = {}
        self._counts: Counter[str] = Counter()

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Failed("the tests could not be collected")
        self._items = {item.nodeid: item for item in session.items}
        self._functions: dict[str, list[FunctionType]] = {}
        for found in gc.get_objects():
            if isinstance(found, FunctionType):
                self._functions.setdefault(found.__code__.co_filename, []).append(found)
        gc.freeze()  # What is there now is not looked through again in each process, which would copy it.
        self._took, self._reach = self._measured()
        for path, change in self._tried:
            self._start(path, change)
            self._wait(len(os.sched_getaffinity(0)))
        self._wait(1)
        gc.unfreeze()
        self._tell()
        return True

    def _measured(self) -> tuple[dict[str, float], dict[str, dict[int, set[str]]]]:
        """The seconds that each test takes, and for lines of files the tests that reach them.

        Measured in a process of its own, so that this one stays without threads and without what tests leave.
        """
        with tempfile.NamedTemporaryFile("r") as answer:
            if (process := os.fork()) == 0:
                os._exit(self._measure(answer.name))
            if os.waitpid(process, 0)[1]:
                raise pytest.exit.Exception("the tests fail without any change", 1)
            took, reach = json.load(answer)
        return took, {file: {int(line): set(tests) for line, tests in lines.items()} for file, lines in reach.items()}

    def _measure(self, answer: str) -> int:
        meter = coverage.Coverage(data_file=None, include=[f"{self._root}/src/*"])
        meter.start()
        took = {}
        items = list(self._items.values())
        for item, later in zip(items, [*items[1:], None], strict=True):
            meter.switch_context(item.nodeid)
            start = time.monotonic()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=later)
            took[item.nodeid] = time.monotonic() - start
        meter.stop()
        data = meter.get_data()
        reach = {file: data.contexts_by_lineno(file) for file in data.measured_files()}
        Path(answer).write_text(json.dumps([took, reach]))
        return min(items[0].session.testsfailed, 1)

    def _start(self, path: Path, change: Mutation) -> None:
        tests = self._tests(path, change.line)
        if not tests:
            self._count("survived", path, change, "no test reaches it")
            return
        if process := os.fork():
            self._running[process] = (time.monotonic(), path, change, tests)
            return
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(self._try(path, change, tests))

    def _try(self, path: Path, change: Mutation, tests: list[str]) -> int:
        pairs = changed_functions(compiled(ast.parse(change.source), path), compiled(change.tree(), path))
        if pairs is None:
            return AT_IMPORT
        if not pairs:
            return SAME
        for function in self._functions.get(str(path), []):
            for old, new in pairs:
                if function.__code__ == old:
                    function.__code__ = new
                    break
        items = [self._items[name] for name in tests]
        start = time.process_time()
        for item, later in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=later)
            if item.session.testsfailed:
                return NOTICED
            if time.process_time() - start > self._seconds:
                break
        return SURVIVED

    def _wait(self, fewer: int) -> None:
        """Until fewer processes than these run. One that takes far longer than it may hangs, which is noticed too."""
        while len(self._running) >= fewer:
            time.sleep(0.002)
            for process, (start, path, change, tests) in list(self._running.items()):
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    outcome = os.waitstatus_to_exitcode(status)
                elif time.monotonic() - start > 60 + 10 * self._seconds:
                    os.killpg(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    outcome = NOTICED
                else:
                    continue
                del self._running[process]
                if outcome == AT_IMPORT:
                    outcome = SURVIVED if self._survives_anew(path, change, tests) else NOTICED
                if outcome == SURVIVED:
                    self._count("survived", path, change, f"{len(tests)} tests reach it")
                else:  # A crash is noticed as well.
                    self._count("the same code" if outcome == SAME else "noticed", path, change)

    def _survives_anew(self, path: Path, change: Mutation, tests: list[str]) -> bool:
        """Whether tests pass in a new process with a copy of the source: for code that runs at import."""
        spent = accumulate((self._took[name] for name in tests), initial=0.0)
        within = [name for name, before in zip(tests, spent, strict=False) if before < self._seconds]
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(self._root / "src", Path(folder) / "src", ignore=shutil.ignore_patterns("__pycache__"))
            (Path(folder) / path.relative_to(self._root)).write_text(ast.unparse(change.tree()))
            environment = {**os.environ, "PYTHONPATH": f"{folder}/src"}
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *within]
            try:
                run = subprocess.run(command, env=environment, capture_output=True, timeout=60 + 5 * self._seconds)
            except subprocess.TimeoutExpired:
                return False
        return run.returncode == 0

    def _tests(self, path: Path, line: int) -> list[str]:
        """The tests that reach a statement; its file, or all, where it runs at import. Those of its name first."""
        reach = self._reach.get(str(path), {})
        lines = [
            range(first, last + 1) for first, last, within in _statements(path) if within and first <= line <= last
        ]
        found = set().union(*(reach.get(line, set()) for line in (lines[0] if lines else reach))) & self._took.keys()
        if not lines and not found:  # A file of fields and constants alone.
            found = set(self._took)
        return sorted(found, key=lambda name: (f"test_{path.stem}.py" not in name, self._took[name], name))

    def _count(self, outcome: str, path: Path, change: Mutation, why: str = "") -> None:
        self._counts[outcome] += 1
        if outcome == "survived":
            print(f"survived: {path.relative_to(self._root)}:{change.line}: {change.what} ({why})", flush=True)
        if sum(self._counts.values()) % 100 == 0:
            self._tell()

    def _tell(self) -> None:
        total = self._counts["noticed"] + self._counts["survived"]
        share = f" ({self._counts['noticed'] / total:.1%})" if total else ""
        print(f"{self._counts['noticed']} of {total} noticed{share}", flush=True)


def compiled(tree: ast.Module, path: Path) -> CodeType:
    return compile(tree, str(path), "exec", dont_inherit=True)


def changed_functions(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """The functions of a module that differ, outer ones first; None if something else does, which ran at import."""
    if not _function(old) and (old.co_code, old.co_names, _values(old)) != (new.co_code, new.co_names, _values(new)):
        return None
    found = [(old, new)] if _function(old) and old != new else []
    inner = ([part for part in code.co_consts if isinstance(part, CodeType)] for code in (old, new))
    for before, after in zip(*inner, strict=False):  # A lambda may be gone.
        if (parts := changed_functions(before, after)) is None:
            return None
        found += [pair for pair in parts if pair[0].co_freevars == pair[1].co_freevars]
    return found


def _function(code: CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_OPTIMIZED)


def _values(code: CodeType) -> list[str]:
    """The constants of code, but for code within it. By their text, as `True == 1`."""
    return [repr(value) for value in code.co_consts if not isinstance(value, CodeType)]


@cache
def _statements(path: Path) -> list[tuple[int, int, bool]]:
    """First and last line of each statement, without the statements within it, and whether a function's code has it."""
    found = []

    def visit(node: ast.AST, within: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                inner = [part.lineno for part in ast.walk(child) if isinstance(part, ast.stmt) and part is not child]
                last = max(child.lineno, min(inner) - 1) if inner else child.end_lineno or child.lineno
                found.append((child.lineno, last, within))
            visit(child, within or isinstance(child, ast.FunctionDef))

    visit(ast.parse(path.read_text()), False)
    return found
