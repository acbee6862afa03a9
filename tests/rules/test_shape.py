"""Sizes, and what the source may not contain."""

from __future__ import annotations

import ast

import pytest

from tests.rules import source

FILE_LINES, FUNCTION_LINES = 400, 60
LONGER = {"cntr.linux.syscalls": 445}  # a mere list of system calls, in one module because an attach loads all of it
# setfsuid(2): "no error indications … are returned"; clearenv(3), memset(3), memcpy(3) and a count that may be none
WITHOUT_ERROR = ("setfsuid", "setfsgid", "wipe_command_line")


@pytest.mark.parametrize("module", source.modules("cntr"))
def test_a_module_fits_in_the_head(module):
    path = source.modules("cntr")[module]
    assert len(path.read_text().splitlines()) <= LONGER.get(module, FILE_LINES)
    functions = [n for n in ast.walk(source.tree(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= FUNCTION_LINES}
    assert not long


@pytest.mark.parametrize("package", ["cntr", "lab", "testkit", "bench", "tests"])
def test_every_module_begins_with_a_docstring(package):
    bare = [
        module
        for module, path in source.modules(package).items()
        if path.read_text().strip() and ast.get_docstring(source.tree(path)) is None
    ]
    assert not bare


@pytest.mark.parametrize("package", ["cntr", "lab", "testkit", "bench", "tests"])
def test_what_only_a_type_checker_sees_is_imported_in_one_way(package):
    """By ``TYPE_CHECKING = False`` right after the imports: importing ``typing`` takes a tenth of an attach."""
    for module, path in source.modules(package).items():
        found = [
            number
            for number, node in enumerate(source.tree(path).body)
            if isinstance(node, ast.If)
            and ast.unparse(node.test) == "TYPE_CHECKING"
            and any(isinstance(inner, (ast.Import, ast.ImportFrom)) for inner in node.body)
        ]
        taken = [
            node for node in ast.walk(source.tree(path)) if isinstance(node, ast.ImportFrom) and node.module == "typing"
        ]
        assert not any(alias.name == "TYPE_CHECKING" for node in taken for alias in node.names), module
        assert len(found) <= 1, module
        for number in found:
            before = source.tree(path).body[:number]
            assert ast.unparse(before[-1]) == "TYPE_CHECKING = False", module
            assert all(isinstance(node, (ast.Import, ast.ImportFrom, ast.Expr)) for node in before[:-1]), module


def test_the_kernel_rooms_name_the_call_in_every_error():
    """Each function that makes a system call by ctypes passes the result to a function that raises with the call's
    name.
    """
    for name in (name for name in source.modules("cntr") if name.startswith("cntr.linux.")):
        for function in source.tree(source.modules("cntr")[name]).body:
            if not isinstance(function, ast.FunctionDef) or function.name in WITHOUT_ERROR:
                continue
            calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
            if any(call.startswith(("_libc.", "_syscall", "python.syscall")) for call in calls):
                assert calls & {"_check", "_fail", "OSError"}, f"{name}.{function.name}"


def test_nobody_asks_for_the_kernels_version():
    askers = [
        module
        for module, path in source.modules("cntr").items()
        for node in ast.walk(source.tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.uname().release", "platform.release")
    ]
    assert not askers, "features are probed"
