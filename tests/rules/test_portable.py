"""cntr runs on Python 3.9, and its distribution's name is the project's own."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

from cntr.engines import store
from tests.rules import source

tomllib = pytest.importorskip("tomllib", reason="the sources are read with Python 3.11 or newer")
PROJECT = tomllib.loads((source.ROOT / "pyproject.toml").read_text())["project"]
OLDEST = (3, 9)
# Attributes of modules added after OLDEST, from "What's new in Python 3.10 … 3.14". Uses behind hasattr or getattr
# don't count.
LATER = {
    "asyncio": "Barrier Runner TaskGroup timeout",
    "bisect": "",
    "contextlib": "aclosing chdir",
    "datetime": "UTC",
    "enum": "StrEnum ReprEnum EnumCheck FlagBoundary member nonmember property verify",
    "errno": "EQFULL ENOTCAPABLE",
    "fcntl": "F_SETPIPE_SZ F_GETPIPE_SZ FICLONE FICLONERANGE F_GETOWN_EX F_SETOWN_EX F_GET_RW_HINT F_SET_RW_HINT",
    "hashlib": "file_digest",
    "inspect": "get_annotations getasyncgenstate markcoroutinefunction",
    "itertools": "pairwise batched",
    "math": "cbrt exp2 sumprod fma",
    "operator": "call is_none",
    "os": "EFD_CLOEXEC EFD_NONBLOCK EFD_SEMAPHORE eventfd eventfd_read eventfd_write splice SPLICE_F_MOVE SPLICE_F_MORE SPLICE_F_NONBLOCK "
    "RWF_APPEND O_EVTONLY O_FSYNC login_tty setns unshare PIDFD_NONBLOCK listdrives pidfd_setflag timerfd_create grantpt unlockpt ptsname "
    "posix_openpt process_cpu_count readinto",
    "pathlib": "UnsupportedOperation",
    "pkgutil": "resolve_name",
    "signal": "",
    "socket": "SO_INCOMING_CPU IP_RECVTOS MPTCP",
    "sqlite3": "Blob LEGACY_TRANSACTION_CONTROL",
    "sys": "exception orig_argv stdlib_module_names activate_stack_trampoline monitoring _is_gil_enabled getunicodeinternedsize",
    "threading": "gettrace getprofile setprofile_all_threads settrace_all_threads",
    "traceback": "",
    "types": "EllipsisType NoneType NotImplementedType UnionType get_original_bases CapsuleType",
    "typing": "Concatenate LiteralString Never NotRequired ParamSpec Required Self TypeAlias TypeGuard TypeVarTuple Unpack assert_never "
    "assert_type dataclass_transform get_overloads is_typeddict override reveal_type TypeAliasType ReadOnly TypeIs NoDefault",
}
METHODS = frozenset(
    "bit_count setlimit getlimit deserialize serialize file_digest hardlink_to walk full_match add_note readinto1".split()
)
MODULES = frozenset(
    "tomllib compression annotationlib pathlib.types string.templatelib concurrent.interpreters wsgiref.types".split()
)
BUILTINS = frozenset("aiter anext EncodingWarning ExceptionGroup BaseExceptionGroup PythonFinalizationError".split())
SOCKETS = {"socket", "_socket", "http.client", "urllib.request"}
KEYWORDS = {
    "zip": {"strict"},
    "dataclass": {"slots", "kw_only", "weakref_slot"},
    "Popen": {"process_group"},
    "bisect_left": {"key"},
}


class Newer(ast.NodeVisitor):
    """Collects uses of what Python 3.9 lacks, except in what only type checkers read (annotations, ``if
    TYPE_CHECKING``).
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self.imported: set[str] = set()

    def say(self, node: ast.AST, what: str) -> None:
        self.found.append(f"line {getattr(node, 'lineno', 0)}: {what}")

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for one in node.orelse:
                self.visit(one)
        elif not any(
            isinstance(part, ast.Call) and getattr(part.func, "id", "") == "hasattr" for part in ast.walk(node.test)
        ):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d), *node.body):
            self.visit(part)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Import(self, node: ast.Import) -> None:
        self.imported |= {name.name for name in node.names}
        for name in node.names:
            if name.name in MODULES:
                self.say(node, f"module {name.name}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module in MODULES:
            self.say(node, f"module {node.module}")
        for name in node.names:
            if name.name in LATER.get(node.module or "", "").split():
                self.say(node, f"{node.module}.{name.name}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.attr in LATER.get(node.value.id, "").split():
            self.say(node, f"{node.value.id}.{node.attr}")
        elif node.attr in METHODS and not (isinstance(node.value, ast.Name) and node.value.id in ("ast", "os")):
            self.say(node, f".{node.attr}")
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in BUILTINS:
            self.say(node, node.id)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        types = (
            "int",
            "str",
            "bytes",
            "bytearray",
            "memoryview",
            "list",
            "dict",
            "tuple",
            "set",
            "float",
            "bool",
            "None",
        )
        sides = [side.id for side in (node.left, node.right) if isinstance(side, ast.Name)]
        sides += ["None" for side in (node.left, node.right) if isinstance(side, ast.Constant) and side.value is None]
        if isinstance(node.op, ast.BitOr) and any(side in types or side.endswith("Error") for side in sides):
            self.say(node, "a union of types at run time")
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        names = {getattr(name, "id", getattr(name, "attr", "")) for name in ast.walk(node.type)} if node.type else set()
        if "TimeoutError" in names and "timeout" not in names and SOCKETS & self.imported:
            self.say(node, "TimeoutError of a socket")  # which was socket.timeout before 3.10
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        for keyword in node.keywords:
            if keyword.arg in KEYWORDS.get(name, ()):
                self.say(node, f"{name}({keyword.arg}=)")
        if name == "raises" and not node.keywords and SOCKETS & self.imported:
            names = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node)}
            if "TimeoutError" in names and "timeout" not in names:
                self.say(node, "TimeoutError of a socket")
        if name in ("isinstance", "issubclass") and len(node.args) == 2 and isinstance(node.args[1], ast.BinOp):
            self.say(node, f"{name} with a union")
        if name in ("to_bytes", "from_bytes") and len(node.args) + len(node.keywords) < 2:
            self.say(node, f"{name} without a byte order")
        self.generic_visit(node)


def newer(text: str) -> list[str]:
    visitor = Newer()
    visitor.visit(ast.parse(text, feature_version=OLDEST))
    return visitor.found


@pytest.mark.parametrize("package", ["cntr", "testkit", "tests"])
def test_nothing_needs_a_newer_python(package):
    """Without tests/lab, since lab/ is for newer Pythons."""
    modules = {name: path for name, path in source.modules(package).items() if not name.startswith("tests.lab.")}
    found = {name: newer(path.read_text()) for name, path in modules.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "text",
    [
        "Path = str | bytes",
        "isinstance(x, OSError | ValueError)",
        "zip(a, b, strict=True)",
        "import os\nos.eventfd(0)",
        "from typing import Self",
        "import tomllib",
        "n.to_bytes()",
        "n.bit_count()",
        "raise ExceptionGroup('', [])",
        "import socket\nwith pytest.raises(TimeoutError):\n    f()",
        "import http.client\ntry:\n    f()\nexcept (TimeoutError, ValueError):\n    pass",
        "@dataclass(slots=True)\nclass A: pass",
    ],
)
def test_the_check_sees_each_kind(text):
    assert newer(text)


def test_and_new_syntax():
    with pytest.raises(SyntaxError):
        newer("match x:\n    case 1:\n        pass")


def test_what_is_guarded_or_for_type_checkers_is_no_use():
    assert (
        newer("if TYPE_CHECKING:\n    from typing import Self\nx: int | str = 1\ndef f(a: int | str) -> None: ...")
        == []
    )
    assert newer("import socket\ntry:\n    f()\nexcept (TimeoutError, socket.timeout):\n    pass") == []
    assert newer("if hasattr(d, 'setlimit'):\n    d.setlimit(1)") == []


def test_the_package_says_so():
    assert PROJECT["requires-python"] == ">=3.9"


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=source.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [
        name
        for name in done.stdout.splitlines()
        if not name.endswith((".svg", ".table", ".cannot")) and name != "tests/rules/test_portable.py"
    ]


def test_nobody_is_told_to_install_a_foreign_package():
    """``cntr`` on PyPI is another project, so pip must be given this project's own name, or a path."""
    assert PROJECT["name"] == "cntr-attach"
    foreign = re.compile(
        r"(pip3?|pipx|uv|uvx|poetry)\b[^\n`]*\b(install|add|run|inject|tool)\b[^\n`]*?[ '\"]cntr(?![-_/.\w])"
    )
    extra = re.compile(r"(?<![-\w/])cntr\[\w+\]")
    for name in tracked():
        path = source.ROOT / name
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not foreign.search(text), (name, foreign.search(text))
            assert not extra.search(text), (name, extra.search(text))


def test_a_scanner_of_json_that_reads_more_than_we_know_is_done_without(monkeypatch):
    """Python 3.15's scanner reads one more attribute than 3.14's. If it reads an unknown one, the public API is used."""

    def make_scanner(context: object) -> None:
        raise AttributeError("array_hook_of_tomorrow")

    monkeypatch.setattr("_json.make_scanner", make_scanner)
    assert store._scanner() is None
    monkeypatch.setattr(store, "_SCAN", None)
    assert store.parse(b'{"a": [1, "\\u00e9"]}') == {"a": [1, "é"]}
