"""The lint of an entrypoint: one line for each reason why the program can't start, and none for a sound one."""

from __future__ import annotations

import os
import pathlib
import shutil
import struct
import subprocess
import sys

import pytest

from cntr.images.elf import Elf, NotElf
from cntr.images.lint import ROOT, CommandUser, _Linter, lint
from testkit.elf import greedy_program, static_program

PATH = {"PATH": "/bin:/usr/bin"}


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "root"
    (path / "bin").mkdir(parents=True)
    (path / "app").mkdir()
    program(path / "bin/sh", static_program())
    return path


def program(path: pathlib.Path, data: bytes, mode: int = 0o755) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def lines(
    root: pathlib.Path, *argv: str, directory: str = "/app", user: CommandUser = ROOT, **variables: str
) -> list[str]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        return lint(fd, list(argv), PATH | variables, directory, user)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("data", "mode", "said"),
    [
        (b"#!/bin/sh\necho\n", 0o755, ""),
        (b"#!/bin/sh\r\necho\r\n", 0o755, "CRLF"),
        (b"#!/bin/sh\necho\r\n", 0o755, "CRLF line endings after the first line"),
        (b"#!/bin/sh\necho\n", 0o644, "not executable (mode 644)"),
        (b"#!/bin/bash\n", 0o755, "its interpreter: /bin/bash: not found"),
        (b"#! /usr/bin/env python3\n", 0o755, "its interpreter: /usr/bin/env: not found"),
        (b"#!\n", 0o755, "without an interpreter"),
        (b"", 0o755, "an empty file"),
        (b"echo hi\n", 0o755, "neither a program nor a script"),
        (b"\xef\xbb\xbf#!/bin/sh\n", 0o755, "byte order mark"),
        (b"#!/app/start\n", 0o755, "too often"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 8) + bytes(44), 0o755, ""),
    ],
)
def test_scripts(root, data, mode, said):
    program(root / "app/start", data, mode)
    found = lines(root, "./start", "argument")
    if data.startswith(b"\x7fELF"):
        assert found
    else:
        assert ([said in line for line in found] == [True]) if said else not found, found


def changed(offset: int, data: bytes) -> bytes:
    program = bytearray(static_program())
    program[offset : offset + len(data)] = data
    return bytes(program)


FILES = {  # content, mode → the finding
    "interpreter without a slash": (b"#!sh\n", 0o755, "/app/sh: not found"),
    "interpreter beside the working directory": (b"#!bin/sh\n", 0o755, "/app/bin/sh: not found"),
    "env takes one word": (b"#!/usr/bin/env sh -e\n", 0o755, "is called 'sh -e': env -S"),
    "env -S splits": (b"#!/usr/bin/env -S A=1 ruby -w\n", 0o755, "ruby: not found in PATH"),
    "an empty line before": (b"\n#!/bin/sh\n", 0o755, "before #!"),
    "a space before": (b" #!/bin/sh\n", 0o755, "before #!"),
    "UTF-16": ("#!/bin/sh\n".encode("utf-16"), 0o755, "UTF-16"),
    "zeros": (bytes(99), 0o755, "zero bytes"),
    "Windows": (b"MZ" + bytes(99), 0o755, "a program for Windows"),
    "macOS": (b"\xcf\xfa\xed\xfe" + bytes(99), 0o755, "macOS"),
    "Java": (b"\xca\xfe\xba\xbe" + bytes(99), 0o755, "Java"),
    "WebAssembly": (b"\0asm\1\0\0\0", 0o755, "WebAssembly"),
    "zip": (b"PK\3\4" + bytes(99), 0o755, "zip"),
    "gzip": (b"\x1f\x8b\x08", 0o755, "gzip"),
    "archive": (b"!<arch>\n", 0o755, "an archive"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", 0o755, "git lfs pull"),
    "HTML": (b"<!DOCTYPE html>", 0o755, "download"),
    "an object file": (changed(16, b"\1\0"), 0o755, "an object file"),
    "a core file": (changed(16, b"\4\0"), 0o755, "an object file or a core file"),
    "cut off": (static_program()[:-8], 0o755, "cut off"),
    "headers cut off": (static_program()[:80], 0o755, "cut off"),
    "only root may": (static_program(), 0o700, "uid 1000 may not execute it (mode 700)"),
    "only its group may": (static_program(), 0o710, "uid 1000 may not execute it (mode 710)"),
    "others may, its group may not": (static_program(), 0o701, ""),
    "a program need not be readable": (static_program(), 0o711, ""),
    "a script has to be": (b"#!/bin/sh\n", 0o711, "may not read it, and its interpreter has to"),
}
WORDS = {  # entrypoint → the finding
    ("/app/x/y",): "/app/x is no directory",
    ("/app/X",): "there is x",
    ("/app/x ",): "ends or begins with a space",
    ("/app/x\r",): "ends or begins with a space",
    ("/app/x --flag",): "a word for each argument",
    ("'/app/x'",): "its quotes",
    ('["/app/x"]',): "double quotes",
    ("$APP/x",): "no shell that would replace",
    ("~/x",): "no shell that would replace",
    ("link",): "link: not found in PATH",
    ("/bin/sh", "-c", "/app/gone --x"): "sh runs /app/gone: not found",
    ("/bin/sh", "-c", "A=1 exec gone"): "sh runs gone: not found in PATH",
    ("/bin/sh", "-c", "['/app/x']"): "double quotes",
    ("/bin/sh", "-c", "cd /tmp && ./gone"): "",
    ("/bin/sh", "-c", "if gone; then x; fi"): "",
    ("/bin/sh", "-c", "/app/x; /app/gone"): "",
    ("/bin/sh", "/app/gone.sh"): "/bin/sh reads /app/gone.sh: not found",
    ("sh", "crlf.sh"): "sh reads /app/crlf.sh: CRLF",
    ("sh", "secret.sh"): "may not read it (mode 600)",
    ("sh", "-e", "gone.sh"): "",
    ("env", "A=1", "gone"): "env runs gone: not found",
    ("tini", "--", "/app/gone"): "tini runs /app/gone: not found",
    ("tini", "-g", "--", "sh", "-c", "exec /app/gone"): "tini runs sh runs /app/gone: not found",
    ("twice",): "",
    ("once",): "/bin/once: not executable (mode 644)",
    ("/hidden/x",): "uid 1000 may not search /hidden (mode 700)",
}
USER = CommandUser(1000, {1000}, all=False)


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_is(root, name):
    data, mode, said = FILES[name]
    program(root / "usr/bin/env", static_program())
    program(root / "app/x", data, mode)
    found = lines(root, "/app/x", user=USER)
    assert ([said in line for line in found] == [True]) if said else not found, found


def test_what_a_word_means(root):
    for path in ("app/x", "bin/tini", "usr/bin/env", "usr/bin/twice", "hidden/x"):
        program(root / path, static_program())
    for path in ("bin/twice", "bin/once"):
        program(root / path, static_program(), 0o644)
    program(root / "app/crlf.sh", b"echo\r\n", 0o644)
    program(root / "app/secret.sh", b"echo\n", 0o600)
    (root / "bin/link").symlink_to("/opt/gone")
    (root / "hidden").chmod(0o700)
    for argv, said in WORDS.items():
        found = lines(root, *argv, user=USER)
        assert ([said in line for line in found] == [True]) if said else not found, (argv, found)
    assert lines(root, "sh", directory="/app/x") == ["/app/x: the working directory is a file"]
    assert lines(root, "/hidden/x") == [], "root may"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_system_that_is_mounted_noexec(root):
    script = (
        "import os, sys; from cntr.images.lint import lint; from cntr.linux import syscalls as s\n"
        "s.unshare(s.CLONE_NEWNS); s.mount(None, '/', None, s.MS_REC | s.MS_PRIVATE)\n"
        "s.mount('none', sys.argv[1] + '/app', 'tmpfs', 8)\n"
        "open(sys.argv[1] + '/app/x', 'wb').write(b'#!/bin/sh'); os.chmod(sys.argv[1] + '/app/x', 0o755)\n"
        "print(lint(os.open(sys.argv[1], os.O_PATH), ['/app/x'], {}, '/'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout == "['/app/x: on a file system that is mounted noexec']\n", done.stderr


def test_what_is_not_there(root):
    assert lines(root) == ["no entrypoint and no command: the image says nothing to run"]
    assert lines(root, "nobody") == ["nobody: not found in PATH (/bin:/usr/bin)"]
    assert lines(root, "/opt/x") == ["/opt/x: not found: there is no /opt"]
    (root / "app/link").symlink_to("/opt/gone")
    assert lines(root, "/app/link") == ["/app/link: not found: a link to /opt/gone, which is not there"]
    (root / "app/round").symlink_to("round")
    assert lines(root, "/app/round") == ["/app/round: not found: a link to round, and so on without end"]
    assert lines(root, "/app") == ["/app: a directory, not a program"]
    assert lines(root, "sh", directory="/nowhere") == ["/nowhere: the working directory is not there"]
    (root / "app/out").symlink_to("../../../../../../../bin/true")
    assert "not found" in lines(root, "/app/out")[0], "links are followed within the root only"


def test_env_finds_its_program_in_path(root):
    program(root / "usr/bin/env", static_program())
    program(root / "app/start", b"#!/usr/bin/env python3\n")
    assert lines(root, "/app/start") == ["/app/start: its interpreter: python3: not found in PATH (/bin:/usr/bin)"]
    program(root / "bin/python3", static_program())
    assert lines(root, "/app/start") == []


def test_another_machines_program(root):
    data = bytearray(static_program())
    data[18:20] = struct.pack("<H", 243 if os.uname().machine != "riscv64" else 62)
    program(root / "app/start", bytes(data))
    assert "exec format error" in lines(root, "/app/start")[0]


@pytest.mark.skipif(not shutil.which("ldd"), reason="no ldd")
def test_interpreter_and_libraries_of_a_real_program(root):
    binary = os.path.realpath(sys.executable)
    program(root / "app/tool", pathlib.Path(binary).read_bytes())
    loader = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    paths = [word for word in loader.split() if word.startswith("/")]
    interpreter = next(path for path in paths if "ld-" in path)
    assert f"its interpreter {interpreter} is not there" in lines(root, "/app/tool")[0]
    for path in paths:
        program(root / path.lstrip("/"), pathlib.Path(path).read_bytes())
    assert lines(root, "/app/tool") == []
    gone = next(path for path in paths if "libc." in path)
    (root / gone.lstrip("/")).unlink()
    assert [f"its library {os.path.basename(gone)} is not there" in line for line in lines(root, "/app/tool")] == [True]


def test_a_fifo_and_a_device_are_not_opened(root):
    os.mkfifo(root / "app/pipe")
    assert lines(root, "/app/pipe") == ["/app/pipe: a special file, not a program"]
    (root / "etc").mkdir()
    os.mkfifo(root / "etc/ld.so.conf")
    assert lines(root, "/bin/sh") == []


@pytest.mark.parametrize("cut", [1, 20, 60, 63, 64, 100, 119])
def test_a_broken_elf_file_is_no_traceback(root, cut):
    program(root / "app/start", static_program()[:cut])
    assert all(isinstance(line, str) for line in lines(root, "/app/start"))
    program(root / "app/start", static_program()[:32] + b"\xff" * 88)
    assert all(isinstance(line, str) for line in lines(root, "/app/start"))


def test_a_small_file_that_needs_a_million_libraries_is_reported(root):
    """The names alone would take four gigabytes."""
    program(root / "app/start", greedy_program())
    assert lines(root, "/app/start") == ["/app/start: an ELF file that needs more libraries than any"]
    with open(root / "app/start", "rb") as stream, pytest.raises(NotElf, match="more libraries"):
        Elf(stream.fileno())


def test_configurations_that_include_each_other_are_read_once(root):
    """Sixty-four files that include each other: four levels deep, that would be sixteen million."""
    (root / "etc/ld.so.conf.d").mkdir(parents=True)
    for number in range(64):
        (root / f"etc/ld.so.conf.d/{number}.conf").write_text(f"include /etc/ld.so.conf.d/*.conf\n/x{number}\n")
    (root / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n" * 9)
    fd = os.open(root, os.O_PATH)
    try:
        linter = _Linter(fd, {}, "/", ROOT)
        assert sorted(linter._configured("etc/ld.so.conf", 0, set())) == sorted(f"/x{number}" for number in range(64))
    finally:
        os.close(fd)


def test_a_script_that_env_leads_back_to_and_a_path_without_end(root):
    program(root / "usr/bin/env", static_program())
    program(root / "app/start", b"#!/usr/bin/env -S start\n")
    (line,) = lines(root, "/app/start", PATH="/app:/usr/bin")
    assert line.endswith("an interpreter that is a script, too often")
    (line,) = lines(root, "nothing", PATH=":".join(["/x"] * 1_000_000))
    assert len(line) < 5000
