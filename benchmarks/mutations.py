"""Small changes to a module's code, one at a time: what `make mutants` tries."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Mult, ast.USub: ast.UAdd,
}  # fmt: skip
"""What an operator becomes."""
NUMBERS = (bool, int, float)


@dataclass(frozen=True)
class Mutation:
    """One change of a module."""

    source: str
    node: int
    """Which node of the module's tree changes, counted as `ast.walk` meets them."""
    line: int
    what: str
    change: Callable[[Any], None]

    def tree(self) -> ast.Module:
        """The whole module, changed; every node keeps its line."""
        tree = ast.parse(self.source)
        self.change(next(node for number, node in enumerate(ast.walk(tree)) if number == self.node))
        return ast.fix_missing_locations(tree)


def mutations(source: str, lines: set[int] | None = None) -> Iterator[Mutation]:
    """Every change of a module that is tried; of these lines only, if they are given."""
    tree = ast.parse(source)
    spared = {id(node) for part in _spared(tree) for node in ast.walk(part)}
    for number, node in enumerate(ast.walk(tree)):
        line = getattr(node, "lineno", None)
        if line is None or (lines is not None and line not in lines) or id(node) in spared:
            continue
        for what, change in _changes(node):
            yield Mutation(source, number, line, what, change)


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
        yield (
            "not x → bool(x)",
            lambda found: _become(found, ast.Call(ast.Name("bool", ast.Load()), [found.operand], [])),
        )
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
