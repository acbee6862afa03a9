"""The project's own source, parsed for the tests of its rules."""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def modules(package: str) -> dict[str, Path]:
    """{dotted name: file} of all modules of a top-level directory of the checkout."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path, *, lazy: bool) -> Iterator[str]:
    """What a module imports, by dotted name: at its top level, or anywhere if LAZY; without imports for type checkers."""
    yield from _imports(tree(path).body, lazy)


def all_imports(path: Path) -> set[str]:
    """Everything a module imports, in functions and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {_module(_base(path, node), alias.name) for alias in node.names}
    return found


def _imports(body: list[ast.stmt], lazy: bool) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield _module(node.module or "", alias.name)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.orelse, lazy)
        else:
            inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, (ast.stmt, ast.ExceptHandler))]
            if lazy or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from _imports([child for child in inner if isinstance(child, ast.stmt)], lazy)
                for handler in inner:
                    if isinstance(handler, ast.ExceptHandler):
                        yield from _imports(handler.body, lazy)


def _base(path: Path, node: ast.ImportFrom) -> str:
    """The module that names are imported from, with relative imports resolved."""
    if not node.level:
        return node.module or ""
    above = path.relative_to(ROOT).parts[: -node.level]
    return ".".join([*above, *filter(None, [node.module])])


def _module(module: str, name: str) -> str:
    """``from cntr import kernel`` imports a module, ``from cntr.errors import CntrError`` does not."""
    whole = f"{module}.{name}"
    is_module = (ROOT / whole.replace(".", "/")).is_dir() or (ROOT / f"{whole.replace('.', '/')}.py").is_file()
    return whole if is_module else module


def code_lines(path: Path) -> int:
    """The number of lines of code in PATH, without blank lines, comments and docstrings."""
    text = path.read_text()
    held = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in _NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            held -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(held)


_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
