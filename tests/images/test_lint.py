"""The lint of an entrypoint: each reason why a program can't start is one line, and a sound one has none."""

from __future__ import annotations

import os
import pathlib
import shutil
import struct
import subprocess
import sys

import pytest

from cntr.images.lint import lint
from testkit.elf import static_program

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


def lines(root: pathlib.Path, *argv: str, directory: str = "/app", **variables: str) -> list[str]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        return lint(fd, list(argv), PATH | variables, directory)
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
    assert "not found" in lines(root, "/app/out")[0], "links are followed inside of the root only"


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
