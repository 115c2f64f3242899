"""Small wrong changes (mutants) of a module's syntax tree, one at a time."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}

ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.MatMult: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}

OUTSIDE = (ast.Import, ast.ImportFrom)
"""Not mutated; nor docstrings, annotations, what only type checkers read, `frozen=True`, and the words of errors."""


@dataclass(frozen=True)
class Mutant:
    """A module with one change."""

    line: int
    """First line of the changed statement or expression, from 1."""
    last: int
    change: str
    """``old code -> new code``"""
    tree: ast.Module

    @property
    def title(self) -> str:
        return f"{self.line}: {self.change}"


@dataclass(frozen=True)
class _Place:
    """The parent and field of a node: `parent.field`, or `parent.field[index]`."""

    parent: ast.AST
    field: str
    index: int | None

    def replace(self, node: ast.AST | None) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        elif node is None:
            del getattr(self.parent, self.field)[self.index]
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module, in the order in which its lines are visited.

    Mutants with equal titles (``x + x`` on one line) are numbered.
    """
    tree = ast.parse(source)
    seen: dict[str, int] = {}
    for path in _places(tree, ()):
        node = _node_at(tree, path)
        for new, what in _changes(node):
            changed = copy.deepcopy(tree)
            place = _place(changed, path)
            place.replace(new if new is None or isinstance(new, ast.AST) else None)
            ast.fix_missing_locations(changed)
            line = getattr(node, "lineno", 1)
            text = f"{line}: {what}"
            seen[text] = seen.get(text, 0) + 1
            if seen[text] > 1:
                what = f"{what} (number {seen[text]})"
            yield Mutant(line, getattr(node, "end_lineno", None) or line, what, changed)


Path = tuple[tuple[str, int | None], ...]


def _places(node: ast.AST, path: Path) -> Iterator[Path]:
    """Paths to all nodes that may be mutated."""
    for name, value in ast.iter_fields(node):
        if _is_left_alone(node, name):
            continue
        if isinstance(value, list):
            first = 1 if name == "body" and _has_docstring(node) else 0
            for index, child in enumerate(value):
                if isinstance(child, ast.AST) and index >= first and not _is_outside(child):
                    yield (here := (*path, (name, index)))
                    yield from _places(child, here)
        elif isinstance(value, ast.AST) and not _is_outside(value):
            yield (here := (*path, (name, None)))
            yield from _places(value, here)


def _is_left_alone(node: ast.AST, field: str) -> bool:
    annotation = field in {"annotation", "returns", "type_params"}
    words = isinstance(node, ast.Raise)
    base = isinstance(node, ast.ClassDef) and field in {"bases", "keywords"}
    return annotation or words or base


def _has_docstring(node: ast.AST) -> bool:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None


def _is_outside(node: ast.AST) -> bool:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a field's docstring, or "..."
        return True
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"__all__", "__slots__"}:
        return True
    if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(("Literal[", "Callable[")):  # names of types
        return True
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func) == "TypeVar"
    if isinstance(node, ast.keyword) and node.arg == "frozen":  # a guard against writing to a value by mistake
        return True
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
        return True
    return isinstance(node, OUTSIDE)


def _node_at(tree: ast.AST, path: Path) -> ast.AST:
    node: ast.AST = tree
    for name, index in path:
        value = getattr(node, name)
        node = value if index is None else value[index]
    return node


def _place(tree: ast.AST, path: Path) -> _Place:
    name, index = path[-1]
    return _Place(_node_at(tree, path[:-1]), name, index)


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST | None, str]]:
    """Yield (replacement, description); None removes an element of a list."""
    for new in _new_expressions(node):
        yield new, f"`{_short(node)}` -> `{_short(new)}`"
    if isinstance(node, ast.keyword):
        yield None, f"`{_short(node)}` left out"
    elif isinstance(node, ast.FunctionDef):
        for index, decorator in enumerate(node.decorator_list):
            if "overload" not in ast.unparse(decorator):
                bare = copy.deepcopy(node)
                del bare.decorator_list[index]
                yield bare, f"`@{_short(decorator)}` of `{node.name}` left out"
    elif isinstance(node, ast.stmt):
        for new in _new_statements(node):
            yield new, f"`{_short(node)}` -> `{_short(new)}`"


def _new_expressions(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare):
        for index, op in enumerate(node.ops):
            for other in COMPARISONS[type(op)]:
                ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                yield ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.BinOp):
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _new_constants(node.value))
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)


def _new_constants(value: object) -> Iterator[bool | int | float | str]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
        if value > 0:
            yield value - 1
    elif isinstance(value, float):
        yield 2 * value + 1
    elif isinstance(value, str) and value:
        yield f"XX{value}"


def _new_statements(node: ast.stmt) -> Iterator[ast.stmt]:
    if isinstance(node, ast.If | ast.While):
        for index, test in enumerate([ast.UnaryOp(ast.Not(), node.test)]):
            changed = copy.copy(node)
            changed.test = test
            if index == 0 and not isinstance(node.test, ast.Compare | ast.UnaryOp):  # those are turned round elsewhere
                yield changed
    elif isinstance(node, ast.Expr | ast.Raise | ast.AugAssign):
        yield ast.Pass()
        if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
            yield ast.AugAssign(node.target, ARITHMETIC[type(node.op)](), node.value)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Assign) and not _is_none(node.value):
        yield ast.Assign(node.targets, ast.Constant(None))
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, ast.Continue):
        yield ast.Break()


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _short(node: ast.AST) -> str:
    lines = ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).splitlines()
    return lines[0] + (" …" if len(lines) > 1 else "")
